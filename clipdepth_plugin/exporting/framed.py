"""How pictures become the input of an exported file: the rule of ``predict`` in depth.json."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from clipdepth_plugin.adapters.preprocessing import Preprocessing, ResizeKind
from clipdepth_plugin.errors import ExportError

_SHAPES = ((150, 230), (260, 170), (40, 40), (1080, 1920), (33, 31))


def as_written(framing: Preprocessing) -> Preprocessing:
    """The same rule by the name of a resize, not by a view rule of a processor.

    Raises:
        ExportError: It is none of those that depth.json knows.
    """
    if framing.resize is not None:
        return framing
    (rule,) = framing.view_rules
    wanted = [rule.views(size).views for size in _SHAPES]
    for kind in get_args(ResizeKind):
        same = replace(framing, resize=kind, view_rules=())
        if [same.rules[0].views(size).views for size in _SHAPES] == wanted:
            return same
    raise ExportError(
        f"pictures of this host are {rule.label}, which depth.json has no name for: train the "
        "head with resize: whole, or export in Python (docs/export.md)"
    )

"""The heads that ``clipdepth bench`` measures: trained ones by name, random ones by preset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipdepth_plugin.errors import BenchError

if TYPE_CHECKING:
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.latency.subject import Subject

DEFAULT_PRESETS = ("spaceclip", "fast")


def check_heads(heads: Sequence[str], presets: Sequence[str]) -> None:
    """Refuses unknown presets, and heads that the report could not tell apart.

    Raises:
        BenchError: Says which.
    """
    from clipdepth_plugin.config import PRESETS

    for preset in presets:
        if preset not in PRESETS:
            raise BenchError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    for name in (both := [*heads, *presets]):
        if both.count(name) > 1:
            raise BenchError(
                f"{name}: two heads of this name, which the report could not tell apart; give "
                f"each once, and a folder as --head ./{name}"
            )


def load_heads(
    heads: Sequence[str], presets: Sequence[str], subject: Subject
) -> dict[str, DepthHead]:
    """The heads by name; ``DEFAULT_PRESETS`` where neither heads nor presets are given.

    Raises:
        HeadFileError: There is no such trained head.
    """
    from clipdepth_plugin.config import PRESETS
    from clipdepth_plugin.latency.subject import random_heads
    from clipdepth_plugin.shipped import load_head

    loaded = {name: load_head(name).to(subject.inputs.pixels).eval() for name in heads}
    presets = presets or (() if heads else DEFAULT_PRESETS)
    return loaded | random_heads(subject, (name for name in PRESETS if name in presets))

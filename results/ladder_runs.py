"""The run files of the ladder, which column each belongs to, and of which form of a head it is.

Part of ladder_table.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipdepth_plugin import DepthHead, HeadConfig
from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS

HERE = Path(__file__).resolve().parent
SETS = ("libero", "kitchen")
COLUMNS = {
    "full": "224 px, equal steps",
    "long": "112 px, ten times the steps",
    "steps": "112 px, equal steps",
    "time": "112 px, equal CPU time",
    "steps32": "112 px, equal steps, float32",
    "time32": "112 px, equal CPU time, float32",
}
"""The full ladder, and what there is at 112 px."""
FILES = (
    ("full", "ladder_full", "steps"),
    ("long", "ladder_long", "steps"),
    ("steps", "ladder", "steps"),
    ("time", "ladder", "time"),
    ("steps32", "ladder_float32", "steps"),
    ("time32", "ladder_float32", "time"),
    ("long", "ladder_long_batch_norm", "steps"),
    ("steps", "ladder_batch_norm", "steps"),
    ("time", "ladder_batch_norm", "time"),
    ("long", "ladder_long_former", "steps"),
    ("steps", "ladder_former", "steps"),
    ("time", "ladder_former", "time"),
)
"""A column, a folder of runs of it, and what its files' names say before the seed."""
PUBLISHED = ("spaceclip", "spaceclip-middle")
HEADS = RUNGS | VARIANTS
NORMS = ("group", "batch", "none")
"""What our heads had, oldest first."""
RESIZED = "full"
"""The column in which the published head's maps were resized for the loss (``LATTICE``)."""

Run = dict[str, Any]


def found() -> tuple[list[Run], dict[str, Any]]:
    """All runs, each with its column; and the content of the cost files by device."""
    runs = [
        json.loads(path.read_text(encoding="utf-8")) | {"column": column}
        for column, folder, kind in FILES
        for path in sorted((HERE / folder).glob(f"*-{kind}-seed*.json"))
    ]
    costs = {
        device: json.loads((HERE / "ladder" / name).read_text(encoding="utf-8"))
        for device, name in (("cpu", "cost.json"), ("cuda", "cost_cuda.json"))
    }
    return runs, costs


def run_columns(runs: Sequence[Run]) -> dict[str, str]:
    """Those of ``COLUMNS`` that anything was run of."""
    return {k: title for k, title in COLUMNS.items() if any(run["column"] == k for run in runs)}


def of(
    runs: Sequence[Run], data: str, name: str, column: str, *, norm: str | None = None
) -> list[Run]:
    """The runs of a head in a column.

    The published heads' runs of equal steps are the measure of equal time; of those that are not
    to be compared there are none.

    Args:
        runs: All.
        data: The set.
        name: Of the head.
        column: See ``COLUMNS``.
        norm: Take those of the head as it was when it had that norm (``FORMER``); None: as it is.
    """
    if not_comparable(name, column):
        return []
    column = column.replace("time", "steps") if name in PUBLISHED else column
    wanted = (data, name, column, norm or norm_now(name))
    return [r for r in runs if (r["data"], r["head"], r["column"], norm_of(r)) == wanted]


def is_former(run: Run) -> bool:
    """Whether it is of a head of ours as it was before: with another norm."""
    return norm_of(run) != norm_now(run["head"])


def norm_now(name: str) -> str:
    """What a head has; of a peer, whose norms are its own, its config says nothing."""
    rung = HEADS[name]
    if rung.kind is not DepthHead:
        return "its own"
    return HeadConfig(width=1, preset=rung.preset, **rung.options).norm


def norm_of(run: Run) -> str:
    """What the head of a run had."""
    own = HEADS[run["head"]].kind is not DepthHead
    norm: str = "its own" if own else run["head_config"]["norm"]
    return norm


def newest(runs: Sequence[Run], data: str, name: str, column: str) -> list[Run]:
    """Those of the head as it is now, or else as it was last."""
    for norm in (None, *reversed(NORMS)):
        if found := of(runs, data, name, column, norm=norm):
            return found
    return []


def not_comparable(name: str, column: str) -> bool:
    """Whether a column says nothing of a head: see ``RESIZED``."""
    return name in PUBLISHED and column == RESIZED

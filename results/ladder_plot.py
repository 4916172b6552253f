"""Draws the ladder: error against added time; part of ladder_table.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from clipdepth_plugin.evaluation.ladder import RUNGS

Points = Mapping[tuple[str, str, str], Sequence[Mapping[str, float]]]
"""(set, column, head) -> the metrics of its runs."""

METRICS = {"abs_rel": "AbsRel", "boundary_abs_rel": "boundary AbsRel"}
MARKERS = {"full": "D", "long": "s", "time": "o", "steps": "o", "time32": "^", "steps32": "^"}
TICKS = (5, 10, 20, 40, 80)
SAID = (
    "diamonds: 224 px, equal steps; at 112 px, squares: ten times the steps, circles: 200 steps "
    "(hollow) and their CPU time (filled), triangles: both in float32;\n"
    "bars: deviation over seeds; no former heads, whose added time was another"
)


def draw(points: Points, cost: Mapping[str, Any], path: Path) -> None:
    """Writes the plot.

    Args:
        points: What was measured.
        cost: Content of a cost file; its added shares are the horizontal axis.
        path: The PNG file.
    """
    sets = list(dict.fromkeys(data for data, _, _ in points))
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(len(METRICS), len(sets), sharex=True)
    for row, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for axis, data in zip(row, sets, strict=True):
            _scatter(axis, points, cost, data, metric)
            axis.set_title(f"{data}: {title}")
    for axis in axes[-1]:
        axis.set_xlabel("added time, % of ViT-B/16's (two CPU cores)")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(SAID, fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _scatter(axis: Any, points: Points, cost: Mapping[str, Any], data: str, metric: str) -> None:
    for (found, column, name), runs in points.items():
        if found != data:
            continue
        values = [run[metric] for run in runs]
        colour = f"C{list(RUNGS).index(name)}"
        axis.errorbar(
            max(100 * cost["heads"][name]["added_share"]["median"], 0.1),
            statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 else None,
            fmt=MARKERS[column],
            color=colour,
            markerfacecolor="white" if column.startswith("steps") else colour,
            label=RUNGS[name].title.replace("`", "") if column == "steps" else None,
            capsize=3,
        )
    axis.set_xscale("log")
    axis.set_xticks(TICKS, map(str, TICKS))
    axis.minorticks_off()
    axis.grid(alpha=0.3)

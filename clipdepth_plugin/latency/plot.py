"""Plots of an audit: what is added, and how it grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.latency.schema import Audit, Figure, Range, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

_LABELS = {"batch": "pictures in a batch", "pixels": "pixels", "levels": "tapped levels"}


def write_plot(path: Path, audit: Audit) -> None:
    """Writes a PNG or SVG file, by its suffix: added time, and a panel for each sweep.

    Raises:
        DepthFileError: It can't be written.
    """
    from matplotlib.figure import Figure as Picture

    panels = 1 + len(audit.sweeps)
    picture = Picture(figsize=(5.5 * panels, 4.2), layout="constrained")
    axes = np.atleast_1d(picture.subplots(1, panels))
    draw_added(axes[0], audit)
    for axis, sweep in zip(axes[1:], audit.sweeps, strict=True):
        draw_sweep(axis, sweep)
    save(path, picture)


def save(path: Path, picture: Picture) -> None:
    """Writes a picture, whole or not at all.

    Raises:
        DepthFileError: It can't be written.
    """
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".")
    # Without a date and random ids, the same figures give the same file.
    plain = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "clipdepth"}):
        write_atomically(
            path, lambda file: picture.savefig(file, format=kind, dpi=150, metadata=plain)
        )


def draw_added(axis: Axes, audit: Audit) -> None:
    """Bars of what each variant adds, with intervals; hatched where it is lost in noise."""
    shown = [figure for figure in audit.figures if figure.added and figure.scope != "head"]
    for row, figure in enumerate(shown):
        added = figure.added[0]
        value = added.milliseconds
        axis.barh(
            row,
            max(value.median, 0.0),
            color=_colour(figure),
            hatch=None if added.told else "///",
            alpha=1.0 if added.told else 0.3,
        )
        axis.errorbar(value.median, row, xerr=_errors([value]), color="black", capsize=2)
    axis.set_yticks(range(len(shown)), [_plain(figure.name) for figure in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("added ms (hatched: lost in noise)")
    axis.set_title(_plain(f"{audit.host.label}, batch {audit.settings.batch}"), fontsize=9)


def draw_sweep(axis: Axes, sweep: Sweep) -> None:
    """Log over log, with the fitted exponents in the legend."""
    values = np.array([point.value for point in sweep.points], dtype=float)
    quantity = values**2 if sweep.over == "pixels" else values
    slopes = {one.of: one.exponent for one in sweep.exponents}
    if sweep.over != "levels":
        _draw_line(axis, "tower", quantity, [p.tower_ms for p in sweep.points], slopes)
    for name in sweep.points[0].added_ms:
        added = [point.added_ms[name] for point in sweep.points]
        _draw_line(axis, name, quantity, added, slopes)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(quantity, [_tick(sweep, point.value) for point in sweep.points])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(_LABELS[sweep.over])
    axis.set_ylabel("ms (a head: added to the tower)")
    axis.legend(fontsize=7)


def _tick(sweep: Sweep, value: int) -> str:
    return f"{value}²" if sweep.over == "pixels" else str(value)


def _draw_line(
    axis: Axes, name: str, quantity: np.ndarray, times: list[Range], slopes: dict[str, Range]
) -> None:
    slope = slopes.get(name)
    label = f"{name}: lost in noise somewhere" if slope is None else f"{name}: exponent {slope}"
    medians = [time.median for time in times]
    axis.errorbar(
        quantity, medians, yerr=_errors(times), marker="o", capsize=2, label=_plain(label)
    )


def _plain(text: str) -> str:
    """A user's name as it is: what stands between two dollar signs would be read as a formula."""
    return text.replace("$", r"\$")


def _errors(values: list[Range]) -> list[list[float]]:
    return [[v.median - v.low for v in values], [v.high - v.median for v in values]]


def _colour(figure: Figure) -> str:
    if figure.scope == "separate":
        return "tab:gray"
    return "tab:orange" if figure.scope == "tower" else "tab:blue"

"""The table that ``clipdepth eval`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from clipdepth_plugin.errors import printable
from clipdepth_plugin.evaluation.protocols import Alignment

if TYPE_CHECKING:
    from clipdepth_plugin.evaluation.evaluate import EvaluationResult


def make_table(result: EvaluationResult, align: Alignment = "none") -> Table:
    """The figures: raw and aligned, each beside the constant depth; those of ``align`` bold."""
    from clipdepth_plugin.evaluation.metrics import METRICS

    baseline, c = result.baseline, result.calibration
    alignments = result.alignments
    caption = f"constant: {baseline.depth:.4g} m ({baseline.kind}); median, lsq: scale-aligned"
    if result.relative:
        caption = (
            "relative depth: scale and shift of its inverse are fitted to each picture's truth, as "
            "are the constant's"
        )
    if result.labels is not None:
        caption += f"\nmeasured against labels of {printable(result.labels)}, not truth"
    if c is not None:
        caption += (
            f"\nconfidence (within a factor of 1.25): predicted {c.mean_confidence:.3f}, true "
            f"{c.share_right:.3f}; expected calibration error {c.calibration_error:.4f}\n"
            f"area under AbsRel over coverage: {c.area:.4f} "
            f"(best possible {c.area_of_the_error:.4f}, uninformed {c.abs_rel:.4f})"
        )
    title = f"{len(result.rows)} pictures, protocol {result.protocol.name}"
    table = Table("", title=title, title_justify="left", caption=caption, caption_justify="left")
    for alignment in alignments:
        header = "raw" if alignment == "none" else alignment
        table.add_column(
            header,
            justify="right",
            no_wrap=True,
            style="bold" if alignment == align else "",
        )
        table.add_column("constant", justify="right", no_wrap=True, style="dim")
    for metric in METRICS:
        both = [means[a] for a in alignments for means in (result.means, baseline.means)]
        values = [means[metric.name] for means in both]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        unit = f", {metric.unit}" if metric.unit else ""
        better = "\N{DOWNWARDS ARROW}" if metric.lower_is_better else "\N{UPWARDS ARROW}"
        table.add_row(f"{metric.label}{unit} {better}", *cells)
    return table

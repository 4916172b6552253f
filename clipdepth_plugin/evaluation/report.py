"""What ``clipdepth eval`` writes: a table, a JSON and a CSV file, each whole or not at all."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import package_versions, platform_name
from clipdepth_plugin.evaluation.metrics import ALIGNMENTS, METRICS, Alignment
from clipdepth_plugin.files.atomic import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

    from clipdepth_plugin.evaluation.calibration import Calibration
    from clipdepth_plugin.evaluation.evaluate import EvaluationResult

JSON_FILE = "report.json"
CSV_FILE = "images.csv"

_HEADERS = {"none": "raw", "median": "median", "lsq": "lsq"}

Figures = dict[Alignment, dict[str, float | None]]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ReportProtocol(_Strict):
    """How it was measured; see ``evaluation.protocols.Protocol``."""

    name: str
    low: float
    """Metres; depth counts above it."""
    high: float | None
    """Metres; depth counts below it; null for no bound."""
    crop: Literal["none", "nyu", "garg", "eigen"]
    flip: bool
    kb_crop: bool


class ReportBaseline(_Strict):
    """The constant depth that the figures stand beside."""

    kind: Literal["test-median", "train-median"]
    """Whose median depth it is."""
    depth: float
    """Metres."""
    means: Figures
    """Alignment -> metric -> mean over pictures."""


class ReportCalibration(_Strict):
    """What the predicted confidence is worth; see ``evaluation.calibration.Calibration``."""

    pixels: int
    mean_confidence: float
    share_right: float
    calibration_error: float
    area: float
    area_of_the_error: float
    abs_rel: float
    curve: tuple[tuple[float, float], ...]


class Report(_Strict):
    """One evaluation."""

    format: Literal["clipdepth-eval/1"] = "clipdepth-eval/1"
    created: str
    """ISO date and time, UTC."""
    command: tuple[str, ...]
    """The command line."""
    versions: dict[str, str]
    """Of Python and of the packages that the figures depend on."""
    machine: str
    """Operating system and processor."""
    device: str
    """Where it was computed."""
    host: str
    head: str
    tower_hashes: dict[str, str]
    """Of the tower's weights, by dtype."""
    data: dict[str, Any]
    """The data set's config."""
    protocol: ReportProtocol
    images: int
    """Pictures measured."""
    skipped: tuple[str, ...]
    """Pictures without a pixel that counts."""
    align: Alignment
    """Which figures the CSV file and the picture sheet show."""
    means: Figures
    """Alignment -> metric -> mean over pictures; null where no picture has the metric."""
    boundary_images: int
    """Pictures that ``boundary_abs_rel`` is the mean of."""
    baseline: ReportBaseline
    calibration: ReportCalibration | None = None
    """Of the raw predictions; null for heads that predict no confidence."""


def make_report(result: EvaluationResult, **said: Any) -> Report:
    """Joins figures and environment.

    Args:
        result: The figures.
        said: ``command``, ``device``, ``host``, ``head``, ``tower_hashes``, ``data``, ``align``.
    """
    protocol, boundary = result.protocol, METRICS[-1].name
    fields = {name: getattr(protocol, name) for name in ReportProtocol.model_fields}
    if math.isinf(protocol.high):
        fields["high"] = None
    with_boundary = [row for row in result.rows if not math.isnan(row.metrics["none"][boundary])]
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=platform_name(),
        protocol=ReportProtocol(**fields),
        images=len(result.rows),
        skipped=result.skipped,
        means=_without_nan(result.means),
        boundary_images=len(with_boundary),
        baseline=ReportBaseline(
            kind=result.baseline.kind,
            depth=result.baseline.depth,
            means=_without_nan(result.baseline_means),
        ),
        calibration=None
        if result.calibration is None
        else ReportCalibration(**asdict(result.calibration)),
        **said,
    )


def write_json(path: Path, report: BaseModel) -> None:
    """Writes a report.

    Raises:
        DepthFileError: The file can't be written.
    """
    content = report.model_dump_json(indent=2).encode() + b"\n"
    write_atomically(path, content)


def write_csv(path: Path, result: EvaluationResult, align: Alignment) -> None:
    """Writes one line for each picture, in the data set's order.

    Columns: name, pixels, scale (the alignment's factor), the metrics, and the constant's AbsRel
    under the same alignment. A metric that a picture does not have is empty.

    Raises:
        DepthFileError: The file can't be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in METRICS]
    writer.writerow(["name", "pixels", "scale", *names, "constant_abs_rel"])
    for row in result.rows:
        values = [row.metrics[align][name] for name in names]
        values.append(row.baseline[align]["abs_rel"])
        shown = ["" if math.isnan(value) else f"{value:.7g}" for value in values]
        writer.writerow([row.name, row.pixels, f"{row.scales[align]:.7g}", *shown])
    write_atomically(path, text.getvalue().encode())


def make_table(result: EvaluationResult, align: Alignment = "none") -> Table:
    """The figures for a terminal: raw and aligned, each beside the constant depth.

    Args:
        result: The figures.
        align: Which of them is printed bold.
    """
    from rich.table import Table

    title = f"{len(result.rows)} pictures, protocol {result.protocol.name}"
    baseline = result.baseline
    table = Table(
        title=title,
        title_justify="left",
        caption=f"constant: {baseline.depth:.4g} m ({baseline.kind}); median, lsq: scale-aligned"
        + _calibration_line(result.calibration),
        caption_justify="left",
    )
    table.add_column("")
    for alignment in ALIGNMENTS:
        bold = "bold" if alignment == align else ""
        table.add_column(_HEADERS[alignment], justify="right", style=bold)
        table.add_column("constant", justify="right", style="dim")
    for metric in METRICS:
        cells = []
        for alignment in ALIGNMENTS:
            for means in (result.means, result.baseline_means):
                value = means[alignment][metric.name]
                cells.append("-" if math.isnan(value) else f"{value:.4f}")
        unit = f", {metric.unit}" if metric.unit else ""
        better = "\N{DOWNWARDS ARROW}" if metric.lower_is_better else "\N{UPWARDS ARROW}"
        table.add_row(f"{metric.label}{unit} {better}", *cells)
    return table


def _calibration_line(calibration: Calibration | None) -> str:
    """What stands below the table of a head that predicts its confidence."""
    if calibration is None:
        return ""
    c = calibration
    return (
        f"\nconfidence (within a factor of 1.25): said {c.mean_confidence:.3f}, true "
        f"{c.share_right:.3f}; expected calibration error {c.calibration_error:.4f}\n"
        f"area under AbsRel over coverage: {c.area:.4f} "
        f"(best possible {c.area_of_the_error:.4f}, knowing nothing {c.abs_rel:.4f})"
    )


def _without_nan(means: dict[Alignment, dict[str, float]]) -> Figures:
    return {
        alignment: {n: None if math.isnan(v) else v for n, v in figures.items()}
        for alignment, figures in means.items()
    }

"""An evaluation's report: a JSON and a CSV file, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import package_versions, platform_name
from clipdepth_plugin.evaluation.calibration import Calibration
from clipdepth_plugin.evaluation.metrics import METRICS, Alignment
from clipdepth_plugin.files.atomic import write_atomically

if TYPE_CHECKING:
    from clipdepth_plugin.evaluation.evaluate import EvaluationResult

JSON_FILE = "report.json"
CSV_FILE = "images.csv"

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
    """Which figures the CSV file and the image grid show."""
    means: Figures
    """Alignment -> metric -> mean over pictures; null if no picture has the metric."""
    boundary_images: int
    """Pictures that ``boundary_abs_rel`` is the mean of."""
    baseline: ReportBaseline
    calibration: Calibration | None = None
    """Of the raw predictions; null for heads that predict no confidence."""


def make_report(result: EvaluationResult, **environment: Any) -> Report:
    """Joins figures and environment.

    Args:
        result: The figures.
        environment: The fields ``command``, ``device``, ``host``, ``head``, ``tower_hashes``,
            ``data`` and ``align`` of the report.
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
        calibration=result.calibration,
        **environment,
    )


def write_json(path: Path, report: BaseModel) -> None:
    """Writes a report.

    Raises:
        DepthFileError: The file can't be written.
    """
    write_atomically(path, report.model_dump_json(indent=2).encode() + b"\n")


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


def _without_nan(means: dict[Alignment, dict[str, float]]) -> Figures:
    return {
        alignment: {n: None if math.isnan(v) else v for n, v in figures.items()}
        for alignment, figures in means.items()
    }

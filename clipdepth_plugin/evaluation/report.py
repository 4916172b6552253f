"""An evaluation's report: a JSON and a CSV file, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import package_versions, platform_name
from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.evaluation.calibration import Calibration
from clipdepth_plugin.evaluation.evaluate import Baseline, EvaluationResult, Means
from clipdepth_plugin.evaluation.metrics import METRICS, Alignment
from clipdepth_plugin.evaluation.protocols import Protocol
from clipdepth_plugin.files.atomic import write_file


class Report(BaseModel):
    """One evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    protocol: Protocol
    images: int
    """Pictures measured."""
    skipped: tuple[str, ...]
    """Pictures without a pixel that counts."""
    align: Alignment
    """Which figures the CSV file and the image grid show."""
    means: Means
    boundary_images: int
    """Pictures that ``boundary_abs_rel`` is the mean of."""
    baseline: Baseline
    calibration: Calibration | None = None
    """Of the raw predictions; null for heads that predict no confidence."""


def make_report(result: EvaluationResult, **environment: Any) -> Report:
    """Joins figures and environment.

    Args:
        result: The figures.
        environment: The fields ``command``, ``device``, ``host``, ``head``, ``tower_hashes``,
            ``data`` and ``align`` of the report.
    """
    boundary = [row.metrics["none"]["boundary_abs_rel"] for row in result.rows]
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=platform_name(),
        protocol=result.protocol,
        images=len(result.rows),
        skipped=result.skipped,
        means=result.means,
        boundary_images=sum(not math.isnan(value) for value in boundary),
        baseline=result.baseline,
        calibration=result.calibration,
        **environment,
    )


def write_report(folder: Path, report: Report, result: EvaluationResult) -> None:
    """Writes report.json, and images.csv with one line for each picture, in the data set's order.

    Columns: name, pixels, scale (the factor of ``report.align``), the metrics, and the constant's
    AbsRel under the same alignment. A metric that a picture does not have is empty.

    Raises:
        DepthFileError: A file can't be written.
    """
    content = report.model_dump_json(indent=2).encode() + b"\n"
    write_file(folder / "report.json", content, DepthFileError)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in METRICS]
    writer.writerow(["name", "pixels", "scale", *names, "constant_abs_rel"])
    for row in result.rows:
        values = [row.metrics[report.align][name] for name in names]
        values.append(row.baseline[report.align]["abs_rel"])
        shown = ["" if math.isnan(value) else f"{value:.7g}" for value in values]
        writer.writerow([row.name, row.pixels, f"{row.scales[report.align]:.7g}", *shown])
    write_file(folder / "images.csv", text.getvalue().encode(), DepthFileError)

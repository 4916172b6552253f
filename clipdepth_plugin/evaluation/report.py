"""An evaluation's files: report.json, images.csv and the image grid; each appears whole or not.

Axes: H W pixels of one picture.
"""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from clipdepth_plugin.environment import package_versions, platform_name
from clipdepth_plugin.evaluation.calibration import Calibration
from clipdepth_plugin.evaluation.evaluate import (
    Baseline,
    EvaluationResult,
    ImageRow,
    Means,
    farthest_depth,
)
from clipdepth_plugin.evaluation.metrics import METRICS
from clipdepth_plugin.evaluation.predictors import Predictor, predict_samples
from clipdepth_plugin.evaluation.protocols import Alignment, Protocol
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.colours import comparison, image_grid

if TYPE_CHECKING:
    from clipdepth_plugin.data import Sample


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
    relative: bool = False
    """Whether the head gives relative depth; metres are the truth's then."""
    labels: str | None = None
    """Whose labels it was measured against, which are not truth; null: it was truth."""
    calibration: Calibration | None = None
    """Of the raw predictions; null for heads that predict no confidence."""


def make_report(result: EvaluationResult, **environment: Any) -> Report:
    """Joins figures and environment.

    Args:
        result: The figures.
        environment: The fields ``command``, ``device``, ``host``, ``head``, ``tower_hashes``,
            ``data`` and ``align`` of the report.
    """
    first = result.alignments[0]
    boundary = [row.metrics[first]["boundary_abs_rel"] for row in result.rows]
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
        relative=result.relative,
        labels=result.labels,
        calibration=result.calibration,
        **environment,
    )


def json_of(report: BaseModel) -> bytes:
    """A report as a file of JSON, also where it has a file's name that is no UTF-8."""
    try:
        content = report.model_dump_json(indent=2)
    except PydanticSerializationError:
        content = json.dumps(report.model_dump(mode="json"), indent=2)
    return content.encode() + b"\n"


def write_report(folder: Path, report: Report, result: EvaluationResult) -> None:
    """Writes report.json, and images.csv with one line for each picture, in the data set's order.

    Columns: name, pixels, scale (the factor of ``report.align``; of ``inverse`` that of inverse
    depth, with its shift in a column behind), the metrics, and the constant's AbsRel under the same
    alignment. A metric that a picture does not have is empty.

    Raises:
        DepthFileError: A file can't be written.
    """
    write_atomically(folder / "report.json", json_of(report))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.name for metric in METRICS]
    shift = ["shift"] if report.align == "inverse" else []
    writer.writerow(["name", "pixels", "scale", *shift, *names, "constant_abs_rel"])
    for row in result.rows:
        values = [row.metrics[report.align][name] for name in names]
        values.append(row.baseline[report.align]["abs_rel"])
        shown = ["" if math.isnan(value) else f"{value:.7g}" for value in values]
        fit = [f"{value:.7g}" for value in row.fits[report.align] if value is not None]
        writer.writerow([row.name, row.pixels, *fit, *shown])
    write_atomically(folder / "images.csv", text.getvalue().encode(errors="backslashreplace"))


def choose_rows(
    result: EvaluationResult, alignment: Alignment, count: int
) -> list[tuple[str, ImageRow]]:
    """("best", "median" or "worst", row) by AbsRel, best first: ``count`` of each, none twice."""
    rows = sorted(result.rows, key=lambda row: row.metrics[alignment]["abs_rel"])
    count = max(1, min(count, len(rows) // 3))
    middle = (len(rows) - count) // 2
    kinds = dict.fromkeys(range(middle, middle + count), "median")
    kinds |= dict.fromkeys(range(len(rows) - count, len(rows)), "worst")
    kinds |= dict.fromkeys(range(count), "best")
    return [(kinds[place], rows[place]) for place in sorted(kinds)]


def write_image_grid(
    path: Path,
    result: EvaluationResult,
    predict: Predictor,
    dataset: Any,
    *,
    alignment: Alignment = "none",
    count: int = 3,
) -> None:
    """Predicts the chosen pictures once more and draws them (``files.colours.comparison``).

    Raises:
        DepthFileError: matplotlib is missing, or the file can't be written.
    """
    chosen = choose_rows(result, alignment, count)
    samples = _fetch(dataset, {row.index for _, row in chosen})
    protocol = result.protocol
    rows = []
    for kind, row in chosen:
        sample = samples[row.index]
        depth_HW = sample.depth_1HW[0].double()
        valid_HW = protocol.valid(depth_HW, sample.name)
        pred_HW = predict_samples(predict, [sample], protocol)[0].depth_HW.double()
        farthest = farthest_depth(protocol, depth_HW, valid_HW)
        scaled_HW = row.fits[alignment](pred_HW, farthest)
        rows.append(
            comparison(
                sample.image_3HW.permute(1, 2, 0).numpy(),
                torch.where(valid_HW, depth_HW, torch.nan).numpy(),
                scaled_HW.clamp(protocol.low, protocol.high).numpy(),
                f"{kind}: AbsRel {row.metrics[alignment]['abs_rel']:.3f}\n{row.name}",
                truth="truth" if result.labels is None else "labels",
            )
        )
    write_atomically(path, image_grid(rows))


def _fetch(dataset: Any, indices: set[int]) -> dict[int, Sample]:
    if hasattr(dataset, "__getitem__"):
        return {index: dataset[index] for index in indices}
    read = enumerate(islice(dataset, max(indices) + 1))
    return {index: sample for index, sample in read if index in indices}

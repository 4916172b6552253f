"""The folder of a calibrated head: the head, and report.json beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.calibrating.calibrate import Calibrated, Figures
from clipdepth_plugin.environment import package_versions, platform_name
from clipdepth_plugin.errors import HeadFileError
from clipdepth_plugin.evaluation.report import json_of
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.locks import check_new
from clipdepth_plugin.metric_calibration import MetricCalibration

NEW_ALONE = "a calibrated head is written to a new folder, and no head is overwritten"


class Report(BaseModel):
    """One calibration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["clipdepth-calibrate/1"] = "clipdepth-calibrate/1"
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
    """The head before."""
    data: dict[str, Any]
    """The data set's config, or the file of points."""
    calibration: MetricCalibration
    confidence_scale: tuple[float, float]
    """Before and after."""
    no_slope: str | None
    """Why no slope was fitted; null: it was."""
    no_confidence: str | None
    """Why the confidence was not fitted; null: it was."""
    grouping: str
    """What counts as independent."""
    before: Figures
    """Of all points."""
    after: Figures | None
    """Each group's by a fit without it; null where there is but one group."""
    better: bool
    """Whether AbsRel of groups that are left out is significantly smaller after."""
    pictures: tuple[str, ...]
    """Names of those with points."""
    skipped: tuple[str, ...]
    """Names of those without."""
    unseen: int
    """Measured pixels where the tower was not shown the picture."""


def make_report(result: Calibrated, **environment: Any) -> Report:
    """Joins figures and environment.

    Args:
        result: The figures.
        environment: The fields ``command``, ``device``, ``host``, ``head`` and ``data``.
    """
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=platform_name(),
        calibration=result.record,
        confidence_scale=result.confidence_scale,
        no_slope=result.no_slope,
        no_confidence=result.no_confidence,
        grouping=result.readings.grouping,
        before=result.before,
        after=result.after,
        better=result.better,
        pictures=result.readings.names,
        skipped=result.readings.skipped,
        unseen=result.readings.unseen,
        **environment,
    )


def write_calibrated(folder: Path, result: Calibrated, report: Report) -> None:
    """Writes the head with its card, then the report.

    Raises:
        HeadFileError: The folder holds something, or a file can't be written.
    """
    check_new(folder, HeadFileError, NEW_ALONE)
    content = json_of(report)
    result.head.save_pretrained(folder)
    write_atomically(folder / "report.json", content, HeadFileError)

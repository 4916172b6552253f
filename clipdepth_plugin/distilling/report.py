"""The report of a distillation: agreement with the teacher, error against the truth, cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.evaluation.evaluate import Means
from clipdepth_plugin.evaluation.protocols import Alignment
from clipdepth_plugin.evaluation.report import Report, json_of
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.labelling.source import SourceCard
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.latency.schema import Audit

Columns = tuple[tuple[str, Alignment, str], ...]

METRIC: Columns = (
    ("AbsRel", "none", "abs_rel"),
    ("AbsRel, median-aligned", "median", "abs_rel"),
    ("delta1", "none", "delta1"),
    ("delta1, median-aligned", "median", "delta1"),
    ("boundary AbsRel", "none", "boundary_abs_rel"),
)
RELATIVE: Columns = (
    ("AbsRel, aligned in inverse depth", "inverse", "abs_rel"),
    ("delta1, aligned", "inverse", "delta1"),
    ("boundary AbsRel, aligned", "inverse", "boundary_abs_rel"),
)


class DistillReport(BaseModel):
    """report.json of ``clipdepth distill``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["clipdepth-distill/1"] = "clipdepth-distill/1"
    teacher: SourceCard
    host: str
    head: str
    """Folder of the student's head."""
    pictures: tuple[int, int]
    """Labelled pictures that trained it, and those that were held out."""
    agreement: Report | None
    """Of the student with the teacher's labels, on the pictures held out; null where these are
    relative depth."""
    inverse_error: float | None
    """The same of relative depth: see ``training.validation``."""
    truth: dict[str, dict[str, Report]]
    """Data set -> both against its truth."""
    cost: Audit
    """What the student adds to the host."""
    environment: Environment


def to_markdown(report: DistillReport) -> str:
    """The report as a page."""
    teacher, (train, held_out) = report.teacher, report.pictures
    about = (
        f"Teacher: `{teacher.source}`, version {teacher.version}, licence "
        f"{teacher.licence or 'not stated'}. {train} labelled pictures trained the head, "
        f"{held_out} were held out."
    )
    lines = [f"# A head for {report.host}", "", about, "", "## Agreement with the teacher", ""]
    if report.agreement is None:
        found = report.inverse_error
        relative = (
            "Relative depth; its agreement was not measured: the run has no validation data."
            if found is None
            else "Relative depth. Error of inverse depth, scale and shift aligned, on the pictures "
            f"held out: {found:.3f}. `training/pictures` shows some of them."
        )
        lines.append(relative)
    else:
        lines += ["On the pictures held out (`pictures.png` shows some).", ""]
        lines += _table({"student": report.agreement})
    for data, both in report.truth.items():
        lines += ["", f"## Against the truth of {data}", "", *_table(both)]
    worth = _worth(report)
    if worth:
        lines += ["", "## Confidence", "", *worth]
    lines += ["", "## Cost", "", *(f"- {line}" for line in report.cost.verdict)]
    return "\n".join([*lines, "", describe(report.environment), ""])


def _table(reports: Mapping[str, Report]) -> list[str]:
    """A row for each, and one for a constant depth."""
    last = list(reports.values())[-1]
    columns = RELATIVE if last.relative else METRIC
    rows = [(name, *_cells(one.means, columns), _ece(one)) for name, one in reports.items()]
    rows.append(("one depth for all", *_cells(last.baseline.means, columns), "-"))
    return markdown_table(("", *(title for title, _, _ in columns), "ECE"), rows)


def _cells(means: Means, columns: Columns) -> list[str]:
    values = [means.get(alignment, {}).get(metric) for _, alignment, metric in columns]
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _ece(report: Report) -> str:
    found = report.calibration
    return "-" if found is None else f"{found.calibration_error:.3f}"


def _worth(report: DistillReport) -> list[str]:
    """What the confidence is worth, a line for each set."""
    sets = {"the teacher's labels": report.agreement}
    sets |= {f"the truth of {data}": both["student"] for data, both in report.truth.items()}
    return [
        f"- Against {name}: {found.mean_confidence:.2f} predicted, {found.share_right:.2f} right "
        f"(within a factor of 1.25). Without the least sure pixels AbsRel is {found.area:.3f} on "
        f"average, with all {found.abs_rel:.3f}, at best {found.area_of_the_error:.3f}."
        for name, one in sets.items()
        if one is not None and (found := one.calibration) is not None
    ]


def write(folder: Path, report: DistillReport) -> None:
    """Writes report.json and report.md.

    Raises:
        DepthFileError: A file can't be written.
    """
    write_atomically(folder / "report.md", to_markdown(report).encode(errors="backslashreplace"))
    write_atomically(folder / "report.json", json_of(report))

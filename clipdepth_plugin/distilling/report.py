"""The report of a distillation: agreement with the teacher, error against the truth, cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.evaluation.protocols import Alignment
from clipdepth_plugin.evaluation.report import Report
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.labelling.source import SourceCard
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.latency.schema import Audit

COLUMNS: tuple[tuple[str, Alignment, str], ...] = (
    ("AbsRel", "none", "abs_rel"),
    ("AbsRel, median-aligned", "median", "abs_rel"),
    ("delta1", "none", "delta1"),
    ("delta1, median-aligned", "median", "delta1"),
    ("boundary AbsRel", "none", "boundary_abs_rel"),
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
    agreement: Report
    """Of the student with the teacher's labels, on the pictures held out."""
    truth: dict[str, dict[Literal["teacher", "student"], Report]]
    """Data set -> both against its truth."""
    cost: Audit
    """What the student adds to the host."""
    environment: Environment


def to_markdown(report: DistillReport) -> str:
    """The report as a page."""
    teacher, (train, held_out) = report.teacher, report.pictures
    rows = [("student against the teacher", *_cells(report.agreement))]
    rows.append(("one depth for all", *_cells(report.agreement, constant=True)))
    lines = [
        f"# A head for {report.host}",
        "",
        f"Teacher: `{teacher.source}`, version {teacher.version}, licence "
        f"{teacher.licence or 'not stated'}. {train} labelled pictures trained the head, "
        f"{held_out} were held out.",
        "",
        "## Agreement with the teacher, on the pictures held out",
        "",
        *_table(rows),
    ]
    for data, both in report.truth.items():
        rows = [(name, *_cells(one)) for name, one in both.items()]
        rows.append(("one depth for all", *_cells(both["student"], constant=True)))
        lines += ["", f"## Against the truth of {data}", "", *_table(rows)]
    lines += ["", "## Confidence", "", _worth(report)]
    lines += ["", "## Cost", "", *(f"- {line}" for line in report.cost.verdict)]
    return "\n".join([*lines, "", describe(report.environment), ""])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    return markdown_table(("", *(title for title, _, _ in COLUMNS), "ECE"), rows)


def _cells(report: Report, *, constant: bool = False) -> list[str]:
    means = report.baseline.means if constant else report.means
    values = [means[alignment][metric] for _, alignment, metric in COLUMNS]
    found = None if constant else report.calibration
    values.append(None if found is None else found.calibration_error)
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _worth(report: DistillReport) -> str:
    """What the confidence is worth, in a sentence for each set."""
    sets = {"the teacher's labels": report.agreement}
    sets |= {f"the truth of {data}": both["student"] for data, both in report.truth.items()}
    sentences = []
    for name, one in sets.items():
        found = one.calibration
        if found is None:
            return "The head predicts none."
        sentences.append(
            f"Against {name} it says {found.mean_confidence:.2f} and {found.share_right:.2f} of "
            f"the pixels are right (within a factor of 1.25); leaving out its least sure pixels "
            f"takes AbsRel from {found.abs_rel:.3f} to {found.area:.3f} on average "
            f"(at best {found.area_of_the_error:.3f})."
        )
    return " ".join(sentences)


def write(folder: Path, report: DistillReport, draw: Callable[[Path], None]) -> None:
    """Writes report.json, report.md and, by ``draw``, pictures.png.

    Raises:
        DepthFileError: A file can't be written.
    """
    draw(folder / "pictures.png")
    write_atomically(folder / "report.md", to_markdown(report).encode(errors="backslashreplace"))
    write_atomically(folder / "report.json", f"{report.model_dump_json(indent=1)}\n".encode())

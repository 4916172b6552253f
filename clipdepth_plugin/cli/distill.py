"""``clipdepth distill``: a head for a host's tower from a teacher and pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clipdepth_plugin.arguments import parse_size
from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.label import TEACHER_HELP, make_settings, parse_pictures, say, told
from clipdepth_plugin.cli.long_work import LongWork
from clipdepth_plugin.cli.options import MOST, BatchOption, DeviceOption, HostOption, TowerOption
from clipdepth_plugin.cli.train import TrainingReport
from clipdepth_plugin.errors import DataError

if TYPE_CHECKING:
    from clipdepth_plugin.distilling.run import Distillation
    from clipdepth_plugin.labelling.job import LabelJob


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """The options of the command."""

    host: HostOption
    folder: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="RUN", help="Folder of labels, tokens, training and report."
        ),
    ]
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="SOURCE", help=TEACHER_HELP)
    ] = None
    pictures: Annotated[
        list[str] | None,
        typer.Option("--pictures", metavar="WHERE", help="As clipdepth label takes them."),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder of clipdepth label, in place of teacher and pictures."
        ),
    ] = None
    truth: Annotated[
        list[str] | None,
        typer.Option(
            "--truth",
            metavar="DATA",
            help="Measured depth, on which teacher and student are compared: rgbd:FOLDER:test.",
        ),
    ] = None
    preset: Annotated[str, typer.Option(help="Of the head: guided, fast, spaceclip ...")] = "guided"
    epochs: Annotated[int, typer.Option(min=1, max=MOST, help="Passes over the labels.")] = 20
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="The tower's input, in place of the host's own."),
    ] = None
    focal_px: Annotated[
        float | None,
        typer.Option(min=1e-3, max=1e6, help="Focal length in pixels of every picture."),
    ] = None
    intrinsics: Annotated[
        str | None, typer.Option(metavar="FX,FY,CX,CY", help="As clipdepth label takes it.")
    ] = None
    every: Annotated[int, typer.Option(min=1, max=MOST, help="Of videos, every n-th frame.")] = 1
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
    tower: TowerOption = None
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[--FIELD VALUE]...", help="Fields of the training run, as clipdepth train."
        ),
    ] = None


def distill(options: DistillOptions, console: Console) -> int:
    """Make a depth head for your own tower from a teacher's labels.

    Labels the pictures (RUN/labels), trains a head on them (RUN/training, from cached tokens) and
    reports (RUN/report.md, report.json, pictures.png): agreement with the teacher on pictures held
    out, error against measured depth where --truth gives some, and what depth adds to this host.
    RUN/train.yaml is the training run, as clipdepth train takes it. Stopped at any point, the same
    command goes on.

    Exit code: 0, done. 1, done, but some pictures could not be read; they are named. 2, the host,
    the teacher, the pictures or an option is wrong; the message says which. 3, an unexpected error.
    """
    from clipdepth_plugin.cli.device import find_device
    from clipdepth_plugin.distilling.report import to_markdown
    from clipdepth_plugin.distilling.run import check_job
    from clipdepth_plugin.distilling.run import distill as run

    find_device(options.device)
    job, labelling = _job(options), _label_job(options)
    with loading(console, options.host):
        check_job(job)
    bad = labelling is not None and _label(labelling, console)
    with TrainingReport(console) as reporter, LongWork(console) as work:
        report = run(job, reporter=reporter, advance=work.at)
    console.print(to_markdown(report))
    console.print(f"head in {report.head}; report in {options.folder}")
    return 1 if bad else 0


def _labels(options: DistillOptions) -> Path:
    return options.labels or options.folder / "labels"


def _label_job(options: DistillOptions) -> LabelJob | None:
    """How the pictures are labelled; None where labels are given."""
    if options.labels is not None:
        if options.teacher is not None or options.pictures:
            raise DataError(
                "--labels: are made already; leave out --teacher and --pictures, or --labels"
            )
        return None
    if options.teacher is None or not options.pictures:
        raise DataError("give --teacher and --pictures, or --labels")
    from clipdepth_plugin.labelling.job import LabelJob

    return LabelJob(
        pictures=tuple(map(parse_pictures, options.pictures)),
        source=options.teacher,
        folder=_labels(options),
        settings=make_settings(focal_px=options.focal_px, intrinsics=options.intrinsics),
        every=options.every,
        batch_size=options.batch_size,
        device=options.device,
    )


def _label(job: LabelJob, console: Console) -> bool:
    """Labels the pictures; whether some could not be read."""
    from clipdepth_plugin.labelling.run import write_labels

    with told(console, "pictures") as advance:
        report = write_labels(job, advance=advance)
    say(report, job.folder, console)
    return bool(report.bad)


def _job(options: DistillOptions) -> Distillation:
    from clipdepth_plugin.cli.data_spec import parse_data
    from clipdepth_plugin.distilling.recipe import Student
    from clipdepth_plugin.distilling.run import Distillation

    if options.input_size is not None:
        parse_size(options.input_size, "--input-size")
    return Distillation(
        labels=_labels(options),
        student=Student(
            host=options.host,
            tower=options.tower,
            preset=options.preset,
            epochs=options.epochs,
            input_size=options.input_size,
        ),
        run=options.folder,
        overrides=options.overrides or (),
        truth=[parse_data(one) for one in options.truth or ()],
        device=options.device,
        command=sys.argv,
    )

"""``clipdepth annotate``: a LeRobot data set in, a new one with depth streams out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.label import TEACHER_HELP, given_lens, told
from clipdepth_plugin.cli.options import (
    HEAD_HELP,
    HOST_HELP,
    ActorsOption,
    BatchOption,
    DeviceOption,
    RayOption,
    SourceDtypeOption,
)
from clipdepth_plugin.errors import DataError

if TYPE_CHECKING:
    from clipdepth_plugin.annotating.run import Joined
    from clipdepth_plugin.annotating.settings import AnnotateJob
    from clipdepth_plugin.labelling.job import LabelReport

_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateOptions:
    """The options of the command."""

    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="A LeRobot data set (v3): a folder, or ORG/NAME."),
    ]
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="NEW", help="Folder of the new data set.")
    ]
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="SOURCE", help=TEACHER_HELP)
    ] = None
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help=HOST_HELP)] = None
    head: Annotated[str | None, typer.Option("--head", metavar="HEAD", help=HEAD_HELP)] = None
    camera: Annotated[
        list[str] | None,
        typer.Option("--camera", metavar="NAME", help="Only this camera; may be given again."),
    ] = None
    max_depth: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1000.0,
            help="End of the encoder's range in metres; not given: LeRobot's own, 10.",
        ),
    ] = None
    focal_px: Annotated[
        float | None,
        typer.Option(min=1e-3, max=1e6, help="Focal length in pixels of every camera."),
    ] = None
    intrinsics: Annotated[
        str | None,
        typer.Option(
            metavar="FX,FY,CX,CY",
            help="Of every camera; or a JSON file: CAMERA or EPISODE/CAMERA -> the four.",
        ),
    ] = None
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
    dtype: SourceDtypeOption = None
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Only part I of N; the last to end joins all.")
    ] = "1/1"
    ray: RayOption = False
    actors: ActorsOption = None


def annotate_set(options: AnnotateOptions, console: Console) -> int:
    """Add a depth stream for each camera to a copy of a LeRobot data set.

    Depth is that of a teacher (--teacher) or of a head on its host (--head, --host), in metres,
    under observation.images.CAMERA_depth, as LeRobot itself records depth cameras. Read by LeRobot
    it is in millimetres unless depth_output_unit="m" is given; 10 mm stands for "not known". All
    else is copied as it is. Until NEW is whole, NEW.parts holds the episodes that are done: a run
    that was killed goes on by the same command.

    Exit code: 0, done; with --shard its part is, and NEW is there once all are. 2, the data set,
    the source, the folder or an option is wrong, or episodes can't be read; the message says
    which. 3, an unexpected error.
    """
    job = make_job(options)
    with loading(console, options.dataset, str(job.source)):
        from clipdepth_plugin.annotating import run
    try:
        with told(console, "shards" if options.ray else "pictures") as advance:
            if options.ray:
                done = run.annotate_on_ray(job, actors=options.actors or 1, advance=advance)
            else:
                done = run.annotate(job, advance=advance)
    except BaseException:
        console.print("what is done stays; the same command goes on from there")
        raise
    _say(*done, options, console)
    return 0


def make_job(options: AnnotateOptions) -> AnnotateJob:
    """The job that the options describe."""
    from clipdepth_plugin.annotating.settings import AnnotateJob, AnnotateSettings
    from clipdepth_plugin.cli.device import find_device
    from clipdepth_plugin.files.problems import checked
    from clipdepth_plugin.labelling.shards import Shard

    if not options.ray:
        find_device(options.device)
    if options.actors is not None and not options.ray:
        raise DataError("--actors: are Ray's; add --ray, or leave it out")
    fields = {name: getattr(options, name) for name in ("max_depth", "focal_px", "dtype")}
    given = {**fields, **given_lens(options.intrinsics)}
    return AnnotateJob(
        dataset=options.dataset,
        source=_source(options),
        folder=options.folder,
        cameras=tuple(options.camera or ()),
        settings=checked(AnnotateSettings, given, "options", DataError),
        batch_size=options.batch_size,
        device=options.device,
        shard=Shard.parse(options.shard),
    )


def _source(options: AnnotateOptions) -> str:
    if options.teacher is not None and options.host is None and options.head is None:
        return options.teacher
    if options.teacher is None and options.host is not None and options.head is not None:
        return f"head:{options.head}@{options.host}"
    raise DataError("give --teacher, or --host and --head")


def _say(report: LabelReport, joined: Joined, options: AnnotateOptions, console: Console) -> None:
    present = f", {report.present} were there" if report.present else ""
    console.print(f"{report.labelled} pictures done{present}")
    if joined.missing:
        named = ", ".join(map(str, joined.missing[:_NAMED]))
        more = " ..." if joined.missing[_NAMED:] else ""
        console.print(
            f"{len(joined.missing)} episodes of other shards are not done: {named}{more}; the last "
            f"shard to end makes {options.folder}",
            style="yellow",
        )
        return
    for key, (pixels, unknown, beyond) in joined.pixels.items():
        console.print(
            f"{key}: {unknown / pixels:.1%} of the pixels not known (10 mm), "
            f"of them {beyond / pixels:.1%} beyond the encoder's range"
        )
    console.print(f"in {options.folder}")

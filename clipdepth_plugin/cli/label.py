"""``clipdepth label``: pictures in, an RGB-D folder of a depth source's labels out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from clipdepth_plugin.cli.console import loading
from clipdepth_plugin.cli.long_work import LongWork
from clipdepth_plugin.cli.options import (
    MOST,
    ActorsOption,
    BatchOption,
    DeviceOption,
    RayOption,
    SourceDtypeOption,
)
from clipdepth_plugin.errors import ClipDepthError, DataError, printable

if TYPE_CHECKING:
    from clipdepth_plugin.labelling.job import LabelJob, LabelReport, Progress
    from clipdepth_plugin.labelling.pictures import PictureSpec
    from clipdepth_plugin.labelling.settings import LabelSettings

_NAMED = 100
TEACHER_HELP = (
    "Where depth comes from: hf:ORG/NAME or hf:FOLDER (a depth model of transformers), "
    "python:module:function, onnx:FILE, or head:HEAD@HOST."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions:
    """The options of the command."""

    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURES...",
            help="Pictures, folders, videos, globs in quotes, hf:ID[:SPLIT], webdataset:SHARDS, "
            "lerobot:REPO, or a YAML or JSON file with the fields of a stream's config.",
        ),
    ]
    teacher: Annotated[str, typer.Option("--teacher", metavar="SOURCE", help=TEACHER_HELP)]
    folder: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Labelled folder; a run that ended goes on there."
        ),
    ]
    split: Annotated[str, typer.Option(help="Split of the labelled folder.")] = "train"
    every: Annotated[
        int, typer.Option(min=1, max=MOST, help="Of videos and episodes, every n-th frame.")
    ] = 1
    focal_px: Annotated[
        float | None,
        typer.Option(min=1e-3, max=1e6, help="Focal length in pixels of every picture."),
    ] = None
    intrinsics: Annotated[
        str | None,
        typer.Option(
            metavar="FX,FY,CX,CY",
            help="Of every picture; or a file of COLMAP, ROS, or JSON: SEQUENCE/FRAME -> the four, "
            "or null.",
        ),
    ] = None
    exif: Annotated[
        bool, typer.Option("--exif/--no-exif", help="Take the focal length from EXIF.")
    ] = True
    max_depth: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1000.0,
            help="Leave out what is farther, in metres; not given: the source's bound, or 100.",
        ),
    ] = None
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of SEQUENCE/FRAME.png, grey: 0 is left out (such as sky)."
        ),
    ] = None
    flip: Annotated[
        bool,
        typer.Option(
            "--flip/--no-flip", help="Leave out where the mirrored picture gives other depth."
        ),
    ] = True
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
    dtype: SourceDtypeOption = None
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Threads that read, and as many that write.")
    ] = 4
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Label only part I of N; all may share one DIR.")
    ] = "1/1"
    ray: RayOption = False
    actors: ActorsOption = None
    bad_file_limit: Annotated[
        int, typer.Option(min=0, max=MOST, help="Pictures that may be unreadable.")
    ] = 0


def label(options: LabelOptions, console: Console) -> int:
    """Label pictures with the depth of a teacher, as an RGB-D folder to train on.

    Writes SPLIT/SEQUENCE/FRAME.depth.png (metres * depth_scale of meta.json) or, of a teacher of
    relative depth, FRAME.inverse.png; FRAME.agreement.png; the picture; intrinsics.json. 0 is
    depth that is not known, too far, or contradicted by the mirrored picture's. A run that was
    killed goes on by the same command.

    Exit code: 0, done. 1, some pictures could not be read; they are named at the end, the others
    are done. 2, the pictures, the teacher, the folder or an option is wrong; the message says
    which. 3, an unexpected error.
    """
    with loading(console, options.teacher):
        job = make_job(options)
    with told(console, "shards" if options.ray else "pictures") as advance:
        report = _run(job, options, advance)
    say(report, options.folder, console)
    return 1 if report.bad else 0


def make_job(options: LabelOptions) -> LabelJob:
    """The job that the options describe."""
    from clipdepth_plugin.cli.device import find_device
    from clipdepth_plugin.labelling.job import LabelJob
    from clipdepth_plugin.labelling.shards import Shard

    if not options.ray:
        find_device(options.device)
    if options.actors is not None and not options.ray:
        raise DataError("--actors: are Ray's; add --ray, or leave it out")
    return LabelJob(
        pictures=tuple(map(parse_pictures, options.pictures)),
        source=options.teacher,
        folder=options.folder,
        split=options.split,
        settings=_settings(options),
        every=options.every,
        batch_size=options.batch_size,
        device=options.device,
        threads=options.threads,
        bad_file_limit=options.bad_file_limit,
        shard=Shard.parse(options.shard),
    )


def parse_pictures(text: str) -> PictureSpec:
    """What one of the PICTURES stands for: a stream's config, or the text itself."""
    from clipdepth_plugin.cli.data_spec import parse_data
    from clipdepth_plugin.data import FORMATS

    kind = text.partition(":")[0]
    is_stream = ":" in text and kind in FORMATS and FORMATS[kind].streams
    is_config = text.lower().endswith((".yaml", ".yml", ".json"))
    return parse_data(text, "train") if is_stream or is_config else text


def _settings(options: LabelOptions) -> LabelSettings:
    fields = ("flip", "max_depth", "focal_px", "exif", "masks", "dtype", "intrinsics")
    return make_settings(**{name: getattr(options, name) for name in fields})


def make_settings(*, intrinsics: str | None, **given: Any) -> LabelSettings:
    """The settings of options; ``intrinsics`` is four numbers or a file."""
    from clipdepth_plugin.files.problems import checked
    from clipdepth_plugin.labelling.settings import LabelSettings

    return checked(LabelSettings, {**given, **given_lens(intrinsics)}, "options", DataError)


def given_lens(intrinsics: str | None) -> dict[str, Any]:
    """The field of settings that ``--intrinsics`` gives: four numbers, or a file."""
    if intrinsics is None:
        return {}
    try:
        return {"intrinsics": [float(one) for one in intrinsics.split(",")]}
    except ValueError:
        return {"intrinsics_file": intrinsics}


def _run(job: LabelJob, options: LabelOptions, advance: Callable[[Progress], None]) -> LabelReport:
    if options.ray:
        from clipdepth_plugin.labelling.on_ray import write_labels_on_ray

        return write_labels_on_ray(job, actors=options.actors or 1, advance=advance)
    from clipdepth_plugin.labelling.run import write_labels

    return write_labels(job, advance=advance)


@contextmanager
def told(console: Console, what: str) -> Iterator[Callable[[Progress], None]]:
    """A bar with the pictures a second; the time left is that of the whole."""
    first: list[tuple[float, int]] = []
    kept = False
    with LongWork(console) as work:

        def advance(progress: Progress) -> None:
            nonlocal kept
            now, kept = time.monotonic(), progress.done > progress.bad
            if not first:
                first.append((now, progress.labelled))
            began, before = first[0]
            rate = (progress.labelled - before) / max(now - began, 1e-9)
            numbers = f"{rate:.3g} pictures/s"
            if progress.bad:
                numbers += f", {progress.bad} bad"
            work.at(what, progress.done, progress.total, numbers)

        try:
            yield advance
        except BaseException as error:
            if kept or not isinstance(error, ClipDepthError):
                console.print("what is labelled stays; the same command goes on from there")
            raise


def say(report: LabelReport, folder: Path, console: Console) -> None:
    """Prints what was labelled, and names what was not."""
    share = report.source_seconds / report.seconds if report.seconds else 0.0
    present = f", {report.present} were there" if report.present else ""
    rate = f" ({share:.0%} of the time in the teacher)" if report.labelled else ""
    console.print(f"{report.labelled} pictures labelled{present} in {folder}{rate}")
    for kind, names in (("no depth that counts", report.empty), ("not done", _bad(report))):
        for name in names[:_NAMED]:
            console.print(f"{kind}: {printable(name)}", style="yellow")
        if len(names) > _NAMED:
            console.print(f"{kind}: {len(names) - _NAMED} more", style="yellow")


def _bad(report: LabelReport) -> tuple[str, ...]:
    return tuple(f"{name}: {reason}" for name, reason in report.bad.items())

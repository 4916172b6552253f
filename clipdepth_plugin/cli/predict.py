"""``clipdepth predict``: pictures in, depth maps out.

Axes: H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from clipdepth_plugin.cli.console import bar, loading
from clipdepth_plugin.cli.options import (
    HEAD_HELP,
    HOST_HELP,
    BatchOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
)
from clipdepth_plugin.cli.predict_sources import MapSource, find_source, frames_in_order
from clipdepth_plugin.cli.started import STARTED
from clipdepth_plugin.errors import HeadMismatchError, HostError, ImageError, printable
from clipdepth_plugin.files.opening import MAX_PIXELS
from clipdepth_plugin.files.pictures import INVERSE_SUFFIX, find_images, load_image


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """The options of the command."""

    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures."),
    ]
    host: Annotated[str | None, typer.Option("--host", metavar="HOST", help=HOST_HELP)] = None
    head: Annotated[str | None, typer.Option("--head", metavar="HEAD", help=HEAD_HELP)] = None
    exported: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="In place of --host and --head: a folder of clipdepth export, which runs in "
            "onnxruntime, without torch.",
        ),
    ] = None
    output: OutputOption
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write NAME.npy: float32 metres, not rounded.")
    ] = False
    batch_size: BatchOption = 1
    device: Annotated[
        str, typer.Option(help="Where to compute, e.g. cpu or cuda; with --exported tensorrt, too.")
    ] = "cpu"
    tower: TowerOption = None
    other_tower: OtherTowerOption = False
    focal_px: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1e6,
            help="Focal length in pixels of the pictures, for heads with a canonical camera.",
        ),
    ] = None
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="Also write NAME.confidence.png: 8-bit, 255 is sure; as .npy, too."
        ),
    ] = False
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="The pictures of a folder are the frames of one camera, in the order of the "
            "numbers in their names: depth is held steady from frame to frame.",
        ),
    ] = False
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1, max=1 << 31, help="Pictures with more pixels are named, and not decoded."
        ),
    ] = MAX_PIXELS
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that predict did not write, too.")
    ] = False


def predict(options: PredictOptions, console: Console) -> int:
    """Write depth maps of pictures.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture. Those of an earlier
    run are replaced; other files of these names (the truth of an RGB-D folder has them) only with
    --overwrite. A picture of one colour has no depth: its maps are 0, and it is named.

    A head of relative depth (metric: false) gives no metres: for it NAME.inverse.png (16-bit, 1 to
    65535 linear in inverse depth with a scale and shift of each picture's own, 0 is no depth)
    stands in place of NAME.depth.png, NAME.inverse.npy in place of NAME.npy, and the colours have
    no scale of metres.

    With --stream, depth is stabilised over the frames of each folder, which must be in order; a
    cut in them is noticed.

    Exit code: 0, all pictures are done. 1, some could not be read; they are named at the end, the
    others are done. 2, the host, the head or the input is wrong, and nothing was written; or a
    map could not be written, and those before are done; the message says which. 3, an unexpected
    error.
    """
    from clipdepth_plugin.cli.predict_files import check_names, check_replaced

    Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the bound
    _check_options(options)
    images = find_images(options.images)
    if options.stream:
        images = frames_in_order(images)
    check_names(images, confidence=options.confidence)
    names = (options.host, options.head, options.exported)
    with loading(console, *(str(name) for name in names if name is not None)):
        source = find_source(
            options.host,
            options.head,
            options.exported,
            options.device,
            options.tower,
            other_tower=options.other_tower,
            stream=options.stream,
        )
        _check_camera(source, options)
        if not options.overwrite:
            kinds = {"npy": options.npy, "confidence": options.confidence}
            check_replaced(images, options.output, metric=source.says.metric, **kinds)
        source.open()
    unreadable, empty = _predict_all(images, source, options, console)
    done = len(images) - len(unreadable)
    console.print(f"{done} depth maps in {options.output}")
    if not source.says.metric:
        console.print(
            f"relative depth, no metres: NAME{INVERSE_SUFFIX} is inverse depth with a scale and "
            "a shift of each picture's own"
        )
    for path in empty:
        console.print(f"no depth, as it is of one colour: {printable(path)}", style="yellow")
    for error in unreadable:
        console.print(f"not done: {error}", style="red")
    return 1 if unreadable else 0


def _check_options(options: PredictOptions) -> None:
    of_torch = {
        "--host": options.host is not None,
        "--head": options.head is not None,
        "--tower": options.tower is not None,
        "--other-tower": options.other_tower,
    }
    if options.stream and options.exported is not None:
        raise HostError(
            "--stream: an exported graph gives no tokens, by which frames are matched; give --host "
            "and --head in place of --exported"
        )
    if options.stream and options.batch_size != 1:
        raise HostError("--batch-size: --stream takes frames one by one; leave it out")
    if options.exported is None:
        for name in ("--host", "--head"):
            if not of_torch[name]:
                raise HostError(f"{name} is missing: give --host and --head, or --exported FOLDER")
    elif given := [name for name, is_given in of_torch.items() if is_given]:
        raise HostError(
            f"{', '.join(given)}: does nothing with --exported, whose folder has host and head in "
            "it; leave one of the two out"
        )


def _check_camera(source: MapSource, options: PredictOptions) -> None:
    name, says = source.name, source.says
    if options.confidence and not says.confidence:
        raise HeadMismatchError(
            f"--confidence: {name} predicts none (head.options.confidence: true in its "
            "training config would); leave the option out"
        )
    if options.focal_px is not None and not says.metric:
        raise HeadMismatchError(
            f"--focal-px: {name} gives relative depth (config.metric is False), which no "
            "camera turns into metres; leave the option out"
        )
    if options.focal_px is not None and says.canonical_focal is None:
        raise HeadMismatchError(
            f"--focal-px: {name} was trained without a canonical camera, so its metres "
            "do not depend on the focal length; leave the option out"
        )


def _predict_all(
    images: Sequence[Path], source: MapSource, options: PredictOptions, console: Console
) -> tuple[list[ImageError], list[Path]]:
    """What could not be read, and which pictures have no depth."""
    from clipdepth_plugin.cli.predict_files import write_maps

    unreadable: list[ImageError] = []
    empty: list[Path] = []
    first = True
    with bar(console, "depth", len(images), shown=len(images) > 1) as advance:
        for start in range(0, len(images), options.batch_size):
            paths = images[start : start + options.batch_size]
            read: list[tuple[Path, Image.Image]] = []
            if start and paths[0].parent != images[start - 1].parent:
                source.cut()
            for path in paths:
                try:
                    read.append((path, load_image(path, max_pixels=options.max_pixels)))
                except ImageError as error:
                    unreadable.append(error)
            maps = source.maps([image for _, image in read], options.focal_px)
            if first and maps:
                first = False
                seconds = time.perf_counter() - STARTED
                console.print(f"first map {seconds:.2f} s after the start")
            for (path, image), one in zip(read, maps, strict=True):
                if bool(one.is_empty):
                    empty.append(path)
                write_maps(
                    options.output / path.stem,
                    image,
                    one,
                    npy=options.npy,
                    confidence=options.confidence,
                )
            advance(len(paths))
    return unreadable, empty

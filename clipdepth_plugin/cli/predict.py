"""``clipdepth predict``: pictures in, depth maps out.

Axes: C metres and confidence, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clipdepth_plugin.cli.console import bar, loading
from clipdepth_plugin.cli.options import (
    BatchOption,
    DeviceOption,
    HeadOption,
    HostOption,
    OtherTowerOption,
    OutputOption,
    TowerOption,
)
from clipdepth_plugin.errors import HeadMismatchError, ImageError, printable
from clipdepth_plugin.files.opening import MAX_PIXELS
from clipdepth_plugin.files.pictures import (
    COLOUR_SUFFIX,
    CONFIDENCE_SUFFIX,
    DEPTH_SUFFIX,
    INVERSE_SUFFIX,
    find_images,
    load_image,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.plugin.pictures import PictureDepth


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """The options of the command."""

    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures."),
    ]
    host: HostOption
    head: HeadOption
    output: OutputOption
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write NAME.npy: float32 metres, not rounded.")
    ] = False
    batch_size: BatchOption = 1
    device: DeviceOption = "cpu"
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

    Exit code: 0, all pictures are done. 1, some could not be read; they are named at the end, the
    others are done. 2, the host, the head or the input is wrong, and nothing was written; or a
    map could not be written, and those before are done; the message says which. 3, an unexpected
    error.
    """
    from PIL import Image

    from clipdepth_plugin.cli.predict_files import check_names, check_replaced

    Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the bound
    images = find_images(options.images)
    check_names(images, confidence=options.confidence)
    with loading(console, options.host, options.head):
        from clipdepth_plugin.adapters.loading import load_host
        from clipdepth_plugin.cli.device import find_device
        from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
        from clipdepth_plugin.plugin.pictures import PictureDepth
        from clipdepth_plugin.shipped import load_head

        device = find_device(options.device)
        head = load_head(options.head)
        _check_head(head, options)
        if not options.overwrite:
            kinds = {"npy": options.npy, "confidence": options.confidence}
            check_replaced(images, options.output, metric=head.config.metric, **kinds)
        host = load_host(options.host)
        model = host.model.to(device)
        plugin = DepthPlugin(
            model,
            head.to(device),
            tower=options.tower,
            processor=host.preprocessing,
            other_tower=options.other_tower,
        )
        depth_of = PictureDepth(plugin)
    write = _write_maps if head.config.metric else _write_relative
    unreadable, empty = _predict_all(images, depth_of, write, options, console)
    done = len(images) - len(unreadable)
    console.print(f"{done} depth maps in {options.output}")
    if not head.config.metric:
        console.print(
            f"relative depth, no metres: NAME{INVERSE_SUFFIX} is inverse depth with a scale and "
            "a shift of each picture's own"
        )
    for path in empty:
        console.print(f"no depth, as it is of one colour: {printable(path)}", style="yellow")
    for error in unreadable:
        console.print(f"not done: {error}", style="red")
    return 1 if unreadable else 0


def _check_head(head: DepthHead, options: PredictOptions) -> None:
    if options.confidence and not head.config.confidence:
        raise HeadMismatchError(
            f"--confidence: {options.head} predicts none (head.options.confidence: true in its "
            "training config would); leave the option out"
        )
    if options.focal_px is not None and not head.config.metric:
        raise HeadMismatchError(
            f"--focal-px: {options.head} gives relative depth (config.metric is False), which no "
            "camera turns into metres; leave the option out"
        )
    if options.focal_px is not None and head.config.canonical_focal is None:
        raise HeadMismatchError(
            f"--focal-px: {options.head} was trained without a canonical camera, so its metres "
            "do not depend on the focal length; leave the option out"
        )


def _predict_all(
    images: Sequence[Path],
    depth_of: PictureDepth,
    write: Callable[[str, Image.Image, Tensor, PredictOptions], None],
    options: PredictOptions,
    console: Console,
) -> tuple[list[ImageError], list[Path]]:
    """What could not be read, and which pictures have no depth."""
    unreadable: list[ImageError] = []
    empty: list[Path] = []
    with bar(console, "depth", len(images), shown=len(images) > 1) as advance:
        for start in range(0, len(images), options.batch_size):
            paths = images[start : start + options.batch_size]
            read: list[tuple[Path, Image.Image]] = []
            for path in paths:
                try:
                    read.append((path, load_image(path, max_pixels=options.max_pixels)))
                except ImageError as error:
                    unreadable.append(error)
            maps = depth_of([image for _, image in read], focal_px=options.focal_px)
            for (path, image), map_CHW in zip(read, maps, strict=True):
                if bool(map_CHW[0].isnan().all()):
                    empty.append(path)
                write(path.stem, image, map_CHW.cpu(), options)
            advance(len(paths))
    return unreadable, empty


def _write_maps(stem: str, image: Image.Image, map_CHW: Tensor, options: PredictOptions) -> None:
    from clipdepth_plugin.files.depth_maps import (
        write_colour,
        write_confidence_png,
        write_depth_png,
        write_npy,
    )

    write_depth_png(options.output / f"{stem}{DEPTH_SUFFIX}", map_CHW[0])
    write_colour(options.output / f"{stem}{COLOUR_SUFFIX}", map_CHW[0], image=image)
    if options.confidence:
        write_confidence_png(options.output / f"{stem}{CONFIDENCE_SUFFIX}", map_CHW[1])
    if options.npy:
        write_npy(options.output / f"{stem}.npy", map_CHW[0])
        if options.confidence:
            write_npy(options.output / f"{stem}.confidence.npy", map_CHW[1])


def _write_relative(
    stem: str, image: Image.Image, map_CHW: Tensor, options: PredictOptions
) -> None:
    """The maps of a head of relative depth: as inverse depth, under names of their own."""
    from clipdepth_plugin.files.depth_maps import write_colour, write_inverse_png, write_npy
    from clipdepth_plugin.maps.alignment import inverse_of

    inverse_HW = inverse_of(map_CHW[0])
    write_inverse_png(options.output / f"{stem}{INVERSE_SUFFIX}", inverse_HW)
    write_colour(options.output / f"{stem}{COLOUR_SUFFIX}", inverse_HW, image=image, inverse=True)
    if options.npy:
        write_npy(options.output / f"{stem}.inverse.npy", inverse_HW)

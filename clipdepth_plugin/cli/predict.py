"""``clipdepth predict``: pictures in, depth maps out.

Axes: C metres and confidence, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console
from torch import Tensor

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.cli.console import bar, loading
from clipdepth_plugin.cli.device import find_device, make_folder
from clipdepth_plugin.cli.predict_files import check_names, check_replaced
from clipdepth_plugin.errors import HeadMismatchError, ImageError
from clipdepth_plugin.files.depth_maps import (
    write_colour,
    write_confidence_png,
    write_depth_png,
    write_npy,
)
from clipdepth_plugin.files.pictures import (
    COLOUR_SUFFIX,
    CONFIDENCE_SUFFIX,
    DEPTH_SUFFIX,
    find_images,
    load_image,
)
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.weights.shipped import load_head

if TYPE_CHECKING:
    from clipdepth_plugin.head import DepthHead


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """The options of the command, as its help describes them."""

    host: str
    head: str
    output: Path
    npy: bool = False
    batch_size: int = 1
    device: str = "cpu"
    tower: str | None = None
    focal_px: float | None = None
    confidence: bool = False
    overwrite: bool = False


def run_predict(
    paths: Sequence[Path], options: PredictOptions, console: Console
) -> list[ImageError]:
    """Writes the depth maps of pictures.

    Args:
        paths: Pictures, and folders of pictures.
        options: The rest of the command line.
        console: For the progress bar and the summary.

    Returns:
        One error for each picture that could not be read; the others are done.

    Raises:
        ValueError: Before anything is written: a path is not there, two pictures would get the
            same output, a file that predict did not write would be replaced, the host or the head
            can't be loaded, they don't fit, no such device, a focal length or a confidence asked
            of a head that knows none.
    """
    images = find_images(paths)
    check_names(images, confidence=options.confidence)
    if not options.overwrite:
        check_replaced(images, options.output, npy=options.npy, confidence=options.confidence)
    device = find_device(options.device)
    with console.status(loading(options.host, options.head)):
        host = load_host(options.host)
        head = load_head(options.head)
        _check_head(head, options)
        model = host.model.to(device)
        plugin = DepthPlugin(
            model, head.to(device), tower=options.tower, processor=host.preprocessing
        )
        depth_of = PictureDepth(plugin)
    make_folder(options.output)
    unreadable = _predict_all(images, depth_of, options, console)
    done = len(images) - len(unreadable)
    console.print(f"{done} depth maps in {options.output}", highlight=False, soft_wrap=True)
    for error in unreadable:
        console.print(f"not done: {error}", style="red", highlight=False, soft_wrap=True)
    return unreadable


def _check_head(head: DepthHead, options: PredictOptions) -> None:
    if options.confidence and not head.config.confidence:
        raise HeadMismatchError(
            f"--confidence: {options.head} was made without one (head.options.confidence: true in "
            "training); leave the option out"
        )
    if options.focal_px is not None and head.config.canonical_focal is None:
        raise HeadMismatchError(
            f"--focal-px: {options.head} was trained without a canonical camera, so its metres "
            "do not depend on the focal length; leave the option out"
        )


def _predict_all(
    images: Sequence[Path], depth_of: PictureDepth, options: PredictOptions, console: Console
) -> list[ImageError]:
    unreadable: list[ImageError] = []
    focal = options.focal_px
    camera = None if focal is None else (focal, focal, 0.0, 0.0)  # its centre does not matter
    with bar(console, "depth", len(images), shown=len(images) > 1) as advance:
        for paths in _batches(images, options.batch_size):
            read: list[tuple[Path, Image.Image]] = []
            for path in paths:
                try:
                    read.append((path, load_image(path)))
                except ImageError as error:
                    unreadable.append(error)
            maps = depth_of([image for _, image in read], camera)
            for (path, image), map_CHW in zip(read, maps, strict=True):
                _write_maps(path.stem, image, map_CHW.cpu(), options)
            advance(len(paths))
    return unreadable


def _write_maps(stem: str, image: Image.Image, map_CHW: Tensor, options: PredictOptions) -> None:
    write_depth_png(options.output / f"{stem}{DEPTH_SUFFIX}", map_CHW[0])
    write_colour(options.output / f"{stem}{COLOUR_SUFFIX}", map_CHW[0], image=image)
    if options.confidence:
        write_confidence_png(options.output / f"{stem}{CONFIDENCE_SUFFIX}", map_CHW[1])
    if options.npy:
        write_npy(options.output / f"{stem}.npy", map_CHW[0])
        if options.confidence:
            write_npy(options.output / f"{stem}.confidence.npy", map_CHW[1])


def _batches(images: Sequence[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(images)
    while batch := list(islice(rest, size)):
        yield batch

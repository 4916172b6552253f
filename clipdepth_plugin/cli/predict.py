"""``clipdepth predict``: pictures in, depth maps out.

Axes: B pictures of a batch, C metres and confidence (of pixels: colours), H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from torch import Tensor

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.cli.console import bar, loading
from clipdepth_plugin.cli.device import find_device, make_folder, preprocessing_of
from clipdepth_plugin.cli.options import (
    BatchOption,
    DeviceOption,
    HeadOption,
    HostOption,
    OutputOption,
    TowerOption,
)
from clipdepth_plugin.cli.predict_files import check_names, check_replaced
from clipdepth_plugin.errors import HeadMismatchError, ImageError
from clipdepth_plugin.evaluation.predictors import camera_factor, predicted_maps
from clipdepth_plugin.features import one_size
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
from clipdepth_plugin.plugin.depth_plugin import attach
from clipdepth_plugin.plugin.estimating import check_finite
from clipdepth_plugin.weights.shipped import load_head

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.plugin.depth_plugin import DepthPlugin


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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that predict did not write, too.")
    ] = False


def predict(options: PredictOptions, console: Console) -> int:
    """Write depth maps of pictures.

    For each picture: NAME.depth.png (16-bit, millimetres, 0 is no depth) and NAME.colour.png
    (colours with a scale in metres), both for the whole picture. Those of an earlier
    run are replaced; other files of these names (the truth of an RGB-D folder has them) only with
    --overwrite.

    Exit code: 0, all pictures are done. 1, some could not be read; they are named at the end, the
    others are done. 2, the host, the head or the input is wrong, and nothing was written; or a
    map could not be written, and those before are done; the message says which. 3, an unexpected
    error.
    """
    images = find_images(options.images)
    check_names(images, confidence=options.confidence)
    if not options.overwrite:
        check_replaced(images, options.output, npy=options.npy, confidence=options.confidence)
    device = find_device(options.device)
    with console.status(loading(options.host, options.head)):
        host = load_host(options.host)
        head = load_head(options.head)
        _check_confidence(head, options)
        tower = choose_tower(host.model.to(device), options.tower)
    preprocessing = preprocessing_of(host, tower)
    with attach(host.model, head.to(device), tower=options.tower) as plugin:
        _say_camera(head, preprocessing, options, console)
        make_folder(options.output)
        unreadable = _predict_all(images, plugin, preprocessing, device, options, console)
    done = len(images) - len(unreadable)
    console.print(f"{done} depth maps in {options.output}")
    for error in unreadable:
        console.print(f"not done: {error}", style="red")
    return 1 if unreadable else 0


def _check_confidence(head: DepthHead, options: PredictOptions) -> None:
    if options.confidence and not head.config.confidence:
        raise HeadMismatchError(
            f"--confidence: {options.head} predicts none (head.options.confidence: true in its "
            "training config would); leave the option out"
        )


def _say_camera(
    head: DepthHead, preprocessing: Preprocessing, options: PredictOptions, console: Console
) -> None:
    """Prints which camera the metres assume, for heads with a canonical camera.

    Raises:
        HeadMismatchError: A focal length for a head that was trained without a canonical camera.
    """
    canonical = head.config.canonical_focal
    if canonical is None:
        if options.focal_px is not None:
            raise HeadMismatchError(
                f"--focal-px: {options.head} was trained without a canonical camera, so its metres "
                "do not depend on the focal length; leave the option out"
            )
    elif options.focal_px is None:
        height, width = preprocessing.size
        console.print(
            f"no --focal-px: the metres are those of a focal length of {canonical:g} pixels at "
            f"{width} x {height}"
        )


def _predict_all(
    images: Sequence[Path],
    plugin: DepthPlugin,
    preprocessing: Preprocessing,
    device: torch.device,
    options: PredictOptions,
    console: Console,
) -> list[ImageError]:
    unreadable: list[ImageError] = []
    canonical, focal = plugin.head.config.canonical_focal, options.focal_px
    camera = None if focal is None else (focal, focal, 0.0, 0.0)  # the centre is not used
    with bar(console, "depth", len(images), shown=len(images) > 1) as advance:
        for start in range(0, len(images), options.batch_size):
            paths = images[start : start + options.batch_size]
            read: list[tuple[Path, Image.Image]] = []
            for path in paths:
                try:
                    read.append((path, load_image(path)))
                except ImageError as error:
                    unreadable.append(error)
            pixels_BCHW = to_pixels([image for _, image in read], preprocessing).to(device)
            if read:
                with torch.inference_mode():
                    maps_BCHW = _maps(plugin, pixels_BCHW)
                for (path, image), map_CHW in zip(read, maps_BCHW, strict=True):
                    size = (image.height, image.width)
                    factor = camera_factor(camera, size, preprocessing, canonical)
                    _write_depth(path.stem, image, map_CHW[:1] * factor, options)
                    if options.confidence:
                        _write_confidence(path.stem, size, map_CHW[1:], options)
            advance(len(paths))
    return unreadable


def _maps(plugin: DepthPlugin, pixels_BCHW: Tensor) -> Tensor:
    """(B, 1 or 2, H, W) of the tower's input, as ``plugin(pixels)``, and the confidence."""
    size = (pixels_BCHW.shape[-2], pixels_BCHW.shape[-1])
    maps_BCHW = predicted_maps(plugin, one_size(plugin.features(pixels_BCHW)), size, size)
    check_finite([maps_BCHW])
    return maps_BCHW


def _write_depth(stem: str, image: Image.Image, depth_1HW: Tensor, options: PredictOptions) -> None:
    depth_HW = _at_size(depth_1HW, (image.height, image.width))
    write_depth_png(options.output / f"{stem}{DEPTH_SUFFIX}", depth_HW)
    write_colour(options.output / f"{stem}{COLOUR_SUFFIX}", depth_HW, image=image)
    if options.npy:
        write_npy(options.output / f"{stem}.npy", depth_HW)


def _write_confidence(
    stem: str, size: tuple[int, int], sure_1HW: Tensor, options: PredictOptions
) -> None:
    sure_HW = _at_size(sure_1HW, size)
    write_confidence_png(options.output / f"{stem}{CONFIDENCE_SUFFIX}", sure_HW)
    if options.npy:
        write_npy(options.output / f"{stem}.confidence.npy", sure_HW)


def _at_size(map_1HW: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at its picture's size: (H, W) on the CPU."""
    return F.interpolate(map_1HW[None], size, mode="bilinear", antialias=True)[0, 0].cpu()

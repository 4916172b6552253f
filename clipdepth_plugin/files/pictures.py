"""Pictures from disk.

Axes: H W pixels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ImageError, printable
from clipdepth_plugin.files.opening import MAX_PIXELS, Source, opened
from clipdepth_plugin.files.paths import is_folder, names_in, status

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Suffixes of pictures in a folder; a file that is named directly may have any."""

_WANTED = "give a PNG, JPEG, WebP or TIFF picture"

DEPTH_SUFFIX, COLOUR_SUFFIX, CONFIDENCE_SUFFIX = ".depth.png", ".colour.png", ".confidence.png"
"""Endings of what ``clipdepth predict`` writes: 16-bit millimetres, colours, 8-bit confidence."""

INVERSE_SUFFIX, AGREEMENT_SUFFIX = ".inverse.png", ".agreement.png"
"""Endings of what ``clipdepth label`` writes beside ``DEPTH_SUFFIX``: 16-bit inverse depth with a
scale and shift of each picture's own, and how well a source agrees with itself, 8 bits."""

UNDISTORTED_SUFFIX = ".undistorted.png"
"""Ending of a picture that ``clipdepth predict`` made straight."""

OUR_SUFFIXES = (
    DEPTH_SUFFIX,
    COLOUR_SUFFIX,
    CONFIDENCE_SUFFIX,
    INVERSE_SUFFIX,
    AGREEMENT_SUFFIX,
    UNDISTORTED_SUFFIX,
)


def find_images(paths: StrPath | Iterable[StrPath]) -> list[Path]:
    """Lists the picture files that ``paths`` name, in that order, each once.

    A folder gives the pictures that lie directly in it (not in folders below), sorted by name.
    Files with an unknown suffix, hidden files and what ``clipdepth predict`` writes are skipped
    there, so a second run does not read the first one's output. A file that is named is taken
    whatever its suffix.

    Raises:
        ImageError: A path is not there or can't be read, a folder holds no picture, or nothing
            was named.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        folder = stat.S_ISDIR(status(path, ImageError).st_mode)
        for image in _images_in(path) if folder else [path]:
            found.setdefault(os.path.realpath(image), image)
    if not found:
        raise ImageError("no pictures given; name at least one file or folder")
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    """Whatever is named as a picture and is no folder; reading it says what it is."""
    names = names_in(folder, ImageError)
    images = [
        folder / name
        for name in names
        if name.lower().endswith(SUFFIXES)
        and not name.startswith(".")
        and not name.lower().endswith(OUR_SUFFIXES)
        and not is_folder(folder / name)
    ]
    if not images:
        raise ImageError(
            f"{printable(folder)}: no pictures in this folder ({len(names)} other entries; folders "
            f"below are not searched); known suffixes are {' '.join(SUFFIXES)}"
        )
    return images


def load_image(path: StrPath, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture as 8-bit RGB, upright.

    EXIF orientation is applied. 16-bit grey is scaled by 255 / 65535, never clipped; float grey
    must lie in 0..1. CMYK, palettes and other modes go through Pillow's ``convert``; transparency
    is dropped, not blended, as the hosts' own preprocessing does. Of an animation or a file of
    several pages the first frame is taken.

    Args:
        path: A file in one of ``opening.FORMATS``, whatever its suffix.
        max_pixels: A picture with more is refused before it is decoded. Beyond 178,956,970,
            ``PIL.Image.MAX_IMAGE_PIXELS`` has to be raised, too.

    Raises:
        ImageError: The file is missing, empty, truncated, too large, no regular file, not a
            picture, or its values have no defined white (32-bit integers, floats outside 0..1,
            NaN).
    """
    with opened_image(Path(path), max_pixels=max_pixels) as opened:
        return upright_rgb(opened, path)


def opened_image(
    source: Source, what: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> AbstractContextManager[Image.Image]:
    """A picture as it is stored; what fails inside becomes an ImageError, too.

    Args:
        source: A file, or its content.
        what: Its name in errors; None: the file's.
        max_pixels: A picture with more is refused.

    Raises:
        ImageError: On entering; see ``opening.opened``.
    """
    name = str(source) if what is None and isinstance(source, Path) else what or "picture"
    return opened(source, name, ImageError, wanted=_WANTED, max_pixels=max_pixels)


def upright_rgb(image: Image.Image, what: StrPath) -> Image.Image:
    """An opened picture as ``load_image`` gives it; ``what`` is its name in errors.

    Raises:
        ImageError: Its values have no defined white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_to_8_bit(np.asarray(image), what))
    elif image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_to_8_bit(grey_HW: NDArray[Any], what: StrPath) -> NDArray[np.uint8]:
    """Scales 16-bit integers (also in 32-bit storage) or floats in 0..1 to 0..255."""
    low, high = float(grey_HW.min()), float(grey_HW.max())
    white = 1.0 if grey_HW.dtype.kind == "f" else 65535.0
    if not (low >= 0.0 and high <= white):  # also true of NaN
        raise ImageError(
            f"{what}: {grey_HW.dtype} grey values from {low:g} to {high:g}, expected 0 to "
            f"{white:g}, so it is unknown which value is white; save it as 8- or 16-bit"
        )
    return np.rint(grey_HW * (255.0 / white)).astype(np.uint8)

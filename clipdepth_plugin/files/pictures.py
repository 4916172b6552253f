"""Pictures from disk.

Axes: H W pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipdepth_plugin.errors import ClipDepthError, ImageError

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Suffixes of pictures in a folder; a file that is named directly may have any."""

DEPTH_SUFFIX, COLOUR_SUFFIX, CONFIDENCE_SUFFIX = ".depth.png", ".colour.png", ".confidence.png"
"""Endings of what ``clipdepth predict`` writes: 16-bit millimetres, colours, 8-bit confidence."""

OUR_SUFFIXES = (DEPTH_SUFFIX, COLOUR_SUFFIX, CONFIDENCE_SUFFIX)


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the picture files that ``paths`` name, in that order, each once.

    A folder gives the pictures that lie directly in it (not in folders below), sorted by name.
    Files with an unknown suffix, hidden files and what ``clipdepth predict`` writes are skipped
    there, so a second run does not read the first one's output. A file that is named is taken
    whatever its suffix.

    Raises:
        ImageError: A path is not there, a folder holds no picture, or nothing was named.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for image in _images_in(path) if path.is_dir() else [path]:
            found.setdefault(image.resolve(), image)
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder; check the path")
    if not found:
        raise ImageError("no pictures given; name at least one file or folder")
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(f"{folder}: the folder can't be read ({error.strerror})") from error
    images = [
        entry
        for entry in entries
        if entry.suffix.lower() in SUFFIXES
        and not entry.name.startswith(".")
        and not entry.name.endswith(OUR_SUFFIXES)
        and entry.is_file()
    ]
    if not images:
        raise ImageError(
            f"{folder}: no pictures in this folder ({len(entries)} other entries; folders below "
            f"are not searched); known suffixes are {' '.join(SUFFIXES)}"
        )
    return images


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a picture as 8-bit RGB, upright.

    EXIF orientation is applied. 16-bit grey is scaled by 255 / 65535, never clipped; float grey
    must lie in 0..1. CMYK, palettes and other modes go through Pillow's ``convert``; transparency
    is dropped, not blended, as the hosts' own preprocessing does. Of an animation or a file of
    several pages the first frame is taken.

    Raises:
        ImageError: The file is missing, empty, truncated, not a picture, or its values have no
            defined white (32-bit integers, floats outside 0..1, NaN).
    """
    with opened_image(Path(path)) as opened:
        return upright_rgb(opened, path)


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Opens a file's picture as it is stored; errors of decoding, inside too, become ImageErrors.

    Raises:
        ImageError: The file is missing, empty, truncated or not a picture.
    """
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty; copy or download it again")
        with Image.open(path) as opened:
            opened.load()
            yield opened
    except (ClipDepthError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the path") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise ImageError(
            f"{path}: not a picture, damaged, or can't be read ({type(error).__name__}: {error}); "
            "copy or download it again, or convert it to PNG or JPEG"
        ) from error


def upright_rgb(image: Image.Image, what: str | os.PathLike[str]) -> Image.Image:
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


def _grey_to_8_bit(grey_HW: NDArray[Any], what: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Scales 16-bit integers (also in 32-bit storage) or floats in 0..1 to 0..255."""
    low, high = float(grey_HW.min()), float(grey_HW.max())
    white = 1.0 if grey_HW.dtype.kind == "f" else 65535.0
    if not (low >= 0.0 and high <= white):  # also true of NaN
        raise ImageError(
            f"{what}: {grey_HW.dtype} grey values from {low:g} to {high:g}, expected 0 to "
            f"{white:g}, so it is unknown which value is white; save it as 8- or 16-bit"
        )
    return np.rint(grey_HW * (255.0 / white)).astype(np.uint8)

"""The files that ``clipdepth predict`` writes, and those that it must not replace.

Axes: H W pixels of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.errors import DepthFileError, ImageError
from clipdepth_plugin.files.depth_maps import (
    COLOUR_NOTE,
    CONFIDENCE_NOTE,
    DEPTH_NOTE,
    NOTE_KEY,
    to_grey,
    to_millimetres,
)
from clipdepth_plugin.files.pictures import COLOUR_SUFFIX, CONFIDENCE_SUFFIX, DEPTH_SUFFIX

_NOTES = {DEPTH_SUFFIX: DEPTH_NOTE, COLOUR_SUFFIX: COLOUR_NOTE, CONFIDENCE_SUFFIX: CONFIDENCE_NOTE}
_ARRAYS: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    DEPTH_SUFFIX: (".npy", to_millimetres),
    CONFIDENCE_SUFFIX: (".confidence.npy", to_grey),
}
"""Suffix of a PNG -> suffix of the NumPy file beside it, and its values as the PNG stores them."""


def check_names(images: Sequence[Path], *, confidence: bool = False) -> None:
    """Refuses pictures whose output files would overwrite each other.

    Names are compared without regard to case, as some file systems do.

    Raises:
        ImageError: Two pictures have the same stem.
    """
    seen: dict[str, Path] = {}
    for image in images:
        for stem in (image.stem, f"{image.stem}.confidence")[: 1 + confidence]:
            other = seen.setdefault(stem.casefold(), image)
            if other is not image:
                raise ImageError(
                    f"{other} and {image} would both be written to {stem}.npy or {stem}"
                    f"{DEPTH_SUFFIX}; rename one, or write them to different folders"
                )


def check_replaced(images: Sequence[Path], folder: Path, *, npy: bool, confidence: bool) -> None:
    """Refuses to replace files that ``clipdepth predict`` did not write.

    The true depth in an RGB-D folder has the same names as predictions. A PNG of ours has a note
    in it; a NumPy file of ours holds what the PNG beside it shows.

    Raises:
        DepthFileError: Another file is where an output would go.
    """
    foreign = []
    for stem in (image.stem for image in images):
        for suffix in (DEPTH_SUFFIX, COLOUR_SUFFIX, CONFIDENCE_SUFFIX)[: 2 + confidence]:
            picture = folder / f"{stem}{suffix}"
            if picture.exists() and not _is_ours(picture, suffix):
                foreign.append(picture)
            if npy and suffix in _ARRAYS:
                array = folder / f"{stem}{_ARRAYS[suffix][0]}"
                if array.exists() and not _is_ours(picture, suffix, array):
                    foreign.append(array)
    if foreign:
        others = f" (and {len(foreign) - 1} more such files)" if len(foreign) > 1 else ""
        raise DepthFileError(
            f"{foreign[0]}{others}: not written, as it is, by predict, and would be replaced; it "
            "may be true depth. Give another folder to -o, or replace it with --overwrite"
        )


def _is_ours(picture: Path, suffix: str, array: Path | None = None) -> bool:
    """Whether a PNG has the note of ours and shows the values of ``array``, where one is given."""
    try:
        with Image.open(picture) as image:
            noted = image.info.get(NOTE_KEY) == _NOTES[suffix]
            if array is None or not noted:
                return noted
            values_HW = np.load(array, allow_pickle=False)
            return np.array_equal(np.asarray(image), _ARRAYS[suffix][1](values_HW))
    except Exception:  # noqa: BLE001 (a file that can't be read is not ours: ours are whole)
        return False

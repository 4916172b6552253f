"""The files that ``clipdepth predict`` writes, and what is in their place that it may not replace.

Axes: H W pixels of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
"""Of a picture's kind: the ending of the NumPy file beside it, and how the picture shows that."""


def check_names(images: Sequence[Path], *, confidence: bool = False) -> None:
    """Refuses pictures whose output files would overwrite each other.

    Names are compared without regard to case, as some file systems do.

    Raises:
        ImageError: Two pictures have the same stem.
    """
    seen: dict[str, Path] = {}
    for image in images:
        stems = [image.stem, *([f"{image.stem}.confidence"] if confidence else [])]
        for stem in stems:
            other = seen.setdefault(stem.casefold(), image)
            if other is not image:
                raise ImageError(
                    f"{other} and {image} would both be written to {stem}.npy or {stem}"
                    f"{DEPTH_SUFFIX}; rename one, or write them to different folders"
                )


def check_replaced(images: Sequence[Path], folder: Path, *, npy: bool, confidence: bool) -> None:
    """Refuses to replace files that ``clipdepth predict`` did not write.

    The truth of an RGB-D folder has the very names of predictions. A PNG is known by the note in
    it; a NumPy file has no place for one, and must hold what the PNG beside it shows.

    Raises:
        DepthFileError: Such a file stands where an output would go.
    """
    suffixes = [DEPTH_SUFFIX, COLOUR_SUFFIX, *([CONFIDENCE_SUFFIX] if confidence else [])]
    foreign = [
        path
        for image in images
        for suffix in suffixes
        for path in _foreign(folder / image.stem, suffix, npy=npy)
    ]
    if foreign:
        others = f" (and {len(foreign) - 1} more such files)" if len(foreign) > 1 else ""
        raise DepthFileError(
            f"{foreign[0]}{others}: not written, as it is, by predict, and would be replaced; it "
            "may be true depth. Give another folder to -o, or replace it with --overwrite"
        )


def _foreign(base: Path, suffix: str, *, npy: bool) -> Iterator[Path]:
    """Of one kind's two files those that are there and not ours."""
    picture = base.with_name(base.name + suffix)
    if picture.exists() and not _is_ours(picture, suffix):
        yield picture
    if npy and suffix in _ARRAYS:
        ending, shown = _ARRAYS[suffix]
        array = base.with_name(base.name + ending)
        if array.exists() and not _is_ours(picture, suffix, array, shown):
            yield array


def _is_ours(
    picture: Path,
    suffix: str,
    array: Path | None = None,
    shown: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray,
) -> bool:
    """Whether a picture is, and shows the array that is given."""
    try:
        with Image.open(picture) as image:
            if image.info.get(NOTE_KEY) != _NOTES[suffix]:
                return False
            if array is None:
                return True
            values_HW = np.load(array, allow_pickle=False)
            return np.array_equal(np.asarray(image), shown(values_HW))
    except Exception:  # noqa: BLE001 (ours appear whole or not at all: what can't be read is not)
        return False

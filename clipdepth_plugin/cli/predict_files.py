"""The files that ``clipdepth predict`` writes, and those that it must not replace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clipdepth_plugin.cli.predict_sources import Maps
from clipdepth_plugin.errors import DepthFileError, ImageError, printable
from clipdepth_plugin.files.depth_maps import (
    COLOUR_NOTE,
    CONFIDENCE_NOTE,
    DEPTH_NOTE,
    INVERSE_NOTE,
    NOTE_KEY,
    NPY_NOTE,
    RELATIVE_COLOUR_NOTE,
    write_colour,
    write_confidence_png,
    write_depth_png,
    write_inverse_png,
    write_npy,
)
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.files.pictures import (
    COLOUR_SUFFIX,
    CONFIDENCE_SUFFIX,
    DEPTH_SUFFIX,
    INVERSE_SUFFIX,
    opened_image,
)

_NOTES = {
    DEPTH_SUFFIX: (DEPTH_NOTE,),
    INVERSE_SUFFIX: (INVERSE_NOTE,),
    COLOUR_SUFFIX: (COLOUR_NOTE, RELATIVE_COLOUR_NOTE),
    CONFIDENCE_SUFFIX: (CONFIDENCE_NOTE,),
}
_ARRAYS = {
    DEPTH_SUFFIX: ".npy",
    INVERSE_SUFFIX: ".inverse.npy",
    CONFIDENCE_SUFFIX: ".confidence.npy",
}
"""Suffix of a PNG -> suffix of the NumPy file beside it."""

_NAME_BYTES = 255
"""The longest name of a file on the file systems in use."""


def write_maps(stem: Path, image: Image.Image, maps: Maps, *, npy: bool, confidence: bool) -> None:
    """Writes the maps of a picture; relative depth as inverse depth, under names of its own."""
    depth = DEPTH_SUFFIX if maps.metric else INVERSE_SUFFIX
    write_png = write_depth_png if maps.metric else write_inverse_png
    write_png(_at(stem, depth), maps.map_HW)
    write_colour(_at(stem, COLOUR_SUFFIX), maps.map_HW, image=image, inverse=not maps.metric)
    if npy:
        write_npy(_at(stem, _ARRAYS[depth]), maps.map_HW)
    if confidence and maps.confidence_HW is not None:
        write_confidence_png(_at(stem, CONFIDENCE_SUFFIX), maps.confidence_HW)
        if npy:
            write_npy(_at(stem, _ARRAYS[CONFIDENCE_SUFFIX]), maps.confidence_HW)


def _at(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}{suffix}")


def check_names(images: Sequence[Path], *, confidence: bool = False) -> None:
    """Refuses pictures whose output files would overwrite each other, or can't be named.

    Names are compared without regard to case, as some file systems do.

    Raises:
        ImageError: Two pictures have the same stem, or one has too long a name.
    """
    seen: dict[str, Path] = {}
    for image in images:
        if len(os.fsencode(image.stem + max(_NOTES, key=len))) > _NAME_BYTES:
            raise ImageError(
                f"{printable(image)}: its maps' names would be longer than {_NAME_BYTES} bytes; "
                "rename it"
            )
        for stem in (image.stem, f"{image.stem}.confidence")[: 1 + confidence]:
            other = seen.setdefault(stem.casefold(), image)
            if other is not image:
                raise ImageError(
                    f"{other} and {image} would both be written to {stem}.npy or {stem}"
                    f"{DEPTH_SUFFIX}; rename one, or write them to different folders"
                )


def check_replaced(
    images: Sequence[Path], folder: Path, *, npy: bool, confidence: bool, metric: bool = True
) -> None:
    """Refuses to replace files that ``clipdepth predict`` did not write.

    The true depth in an RGB-D folder has the same names as predictions. A file of ours has a note
    in it, so that it is known whatever is beside it. ``metric``: whether maps are in metres.

    Raises:
        DepthFileError: Another file is where an output would go.
    """
    foreign = []
    for stem in (image.stem for image in images):
        depth = DEPTH_SUFFIX if metric else INVERSE_SUFFIX
        for suffix in (depth, COLOUR_SUFFIX, CONFIDENCE_SUFFIX)[: 2 + confidence]:
            picture = folder / f"{stem}{suffix}"
            if os.path.lexists(picture) and not _is_ours(picture, suffix):
                foreign.append(picture)
            if npy and suffix in _ARRAYS:
                array = folder / f"{stem}{_ARRAYS[suffix]}"
                if os.path.lexists(array) and not _is_our_array(array):
                    foreign.append(array)
    if foreign:
        others = f" (and {len(foreign) - 1} more such files)" if len(foreign) > 1 else ""
        raise DepthFileError(
            f"{foreign[0]}{others}: not written, as it is, by predict, and would be replaced; it "
            "may be true depth. Give another folder to -o, or replace it with --overwrite"
        )


def _is_ours(picture: Path, suffix: str) -> bool:
    try:
        with opened_image(picture, max_pixels=sys.maxsize) as image:  # only its header is read
            return image.info.get(NOTE_KEY) in _NOTES[suffix]
    except ImageError:  # ours are whole
        return False


def _is_our_array(array: Path) -> bool:
    try:
        size = check_file(array, DepthFileError)
        with array.open("rb") as file:
            file.seek(max(0, size - len(NPY_NOTE)))
            return file.read() == NPY_NOTE
    except (OSError, DepthFileError):
        return False

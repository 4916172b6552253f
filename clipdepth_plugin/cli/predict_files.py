"""The files that ``clipdepth predict`` writes of each picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipdepth_plugin.cli.predict_cameras import View
from clipdepth_plugin.cli.predict_sources import Maps
from clipdepth_plugin.errors import DepthFileError, ImageError
from clipdepth_plugin.files.clouds import GENERATOR, save_glb, save_ply
from clipdepth_plugin.files.depth_maps import (
    COLOUR_NOTE,
    CONFIDENCE_NOTE,
    DEPTH_NOTE,
    INVERSE_NOTE,
    NOTE_KEY,
    NPY_NOTE,
    RELATIVE_COLOUR_NOTE,
    UNDISTORTED_NOTE,
    write_colour,
    write_confidence_png,
    write_depth_png,
    write_inverse_png,
    write_npy,
    write_picture_png,
)
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.files.pictures import (
    COLOUR_SUFFIX,
    CONFIDENCE_SUFFIX,
    DEPTH_SUFFIX,
    INVERSE_SUFFIX,
    UNDISTORTED_SUFFIX,
    opened_image,
)


class Wanted(NamedTuple):
    """What is written of each picture.

    Attributes:
        metric: Whether depth is in metres.
        npy: NumPy files beside each PNG of a map.
        confidence: How sure each pixel is.
        ply: Points.
        glb: A mesh.
        undistort: The picture that was made straight.
    """

    metric: bool = True
    npy: bool = False
    confidence: bool = False
    ply: bool = False
    glb: bool = False
    undistort: bool = False


class Predicted(NamedTuple):
    """A picture and what was predicted of it."""

    view: View
    maps: Maps


class FileKind(NamedTuple):
    """A kind of file that is written of each picture: a row of ``KINDS``.

    Attributes:
        suffix: Of its name, behind the picture's.
        wanted: Whether it is written.
        write: Writes it.
        is_ours: Whether ``clipdepth predict`` wrote such a file.
    """

    suffix: str
    wanted: Callable[[Wanted], bool]
    write: Callable[[Path, Predicted], object]
    is_ours: Callable[[Path], bool]


def _write_colour(path: Path, one: Predicted) -> None:
    write_colour(path, one.maps.map_HW, image=one.view.image, inverse=not one.maps.metric)


def _write_confidence(path: Path, one: Predicted) -> None:
    if one.maps.confidence_HW is not None:
        write = write_npy if path.suffix == ".npy" else write_confidence_png
        write(path, one.maps.confidence_HW)


def _write_cloud(save: Callable[..., None]) -> Callable[[Path, Predicted], None]:
    def write(path: Path, one: Predicted) -> None:
        view, maps = one
        if maps.is_empty:  # it is named at the end
            return
        save(path, maps.map_HW, view.camera, view.image, confidence=maps.confidence_HW)

    return write


def _write_straight(path: Path, one: Predicted) -> None:
    write_picture_png(path, one.view.image, UNDISTORTED_NOTE)


def _noted(*notes: str) -> Callable[[Path], bool]:
    """Knows a PNG of ours by its note."""

    def is_ours(path: Path) -> bool:
        try:
            with opened_image(path, max_pixels=sys.maxsize) as image:  # only its header is read
                return image.info.get(NOTE_KEY) in notes
        except ImageError:  # ours are whole
            return False

    return is_ours


def _contains(mark: bytes, start: int, size: int) -> Callable[[Path], bool]:
    """Knows a file of ours by a mark in some bytes of it; a negative start counts from its end."""

    def is_ours(path: Path) -> bool:
        try:
            length = check_file(path, DepthFileError)
            with path.open("rb") as file:
                file.seek(max(0, length + start if start < 0 else start))
                return mark in file.read(size)
        except (OSError, DepthFileError):
            return False

    return is_ours


_IS_OUR_NPY = _contains(NPY_NOTE, -len(NPY_NOTE), len(NPY_NOTE))
_IS_OUR_CLOUD = _contains(GENERATOR.encode(), 0, 512)

KINDS = (
    FileKind(
        *(DEPTH_SUFFIX, lambda given: given.metric),
        *(lambda path, one: write_depth_png(path, one.maps.map_HW), _noted(DEPTH_NOTE)),
    ),
    FileKind(
        *(INVERSE_SUFFIX, lambda given: not given.metric),
        *(lambda path, one: write_inverse_png(path, one.maps.map_HW), _noted(INVERSE_NOTE)),
    ),
    FileKind(
        *(COLOUR_SUFFIX, lambda _: True),
        *(_write_colour, _noted(COLOUR_NOTE, RELATIVE_COLOUR_NOTE)),
    ),
    FileKind(
        *(".npy", lambda given: given.npy and given.metric),
        *(lambda path, one: write_npy(path, one.maps.map_HW), _IS_OUR_NPY),
    ),
    FileKind(
        *(".inverse.npy", lambda given: given.npy and not given.metric),
        *(lambda path, one: write_npy(path, one.maps.map_HW), _IS_OUR_NPY),
    ),
    FileKind(
        *(CONFIDENCE_SUFFIX, lambda given: given.confidence),
        *(_write_confidence, _noted(CONFIDENCE_NOTE)),
    ),
    FileKind(
        *(".confidence.npy", lambda given: given.confidence and given.npy),
        *(_write_confidence, _IS_OUR_NPY),
    ),
    FileKind(".ply", lambda given: given.ply, _write_cloud(save_ply), _IS_OUR_CLOUD),
    FileKind(".glb", lambda given: given.glb, _write_cloud(save_glb), _IS_OUR_CLOUD),
    FileKind(
        *(UNDISTORTED_SUFFIX, lambda given: given.undistort),
        *(_write_straight, _noted(UNDISTORTED_NOTE)),
    ),
)
"""Every kind of file that is written of a picture; an option is a field of ``Wanted``."""


def write_files(stem: Path, one: Predicted, wanted: Wanted) -> None:
    """Writes what is wanted of a picture; relative depth as inverse depth, under other names.

    Raises:
        DepthFileError: A file can't be written, or depth has no surface in it for a cloud.
    """
    for kind in KINDS:
        if kind.wanted(wanted):
            kind.write(_at(stem, kind.suffix), one)


def _at(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}{suffix}")

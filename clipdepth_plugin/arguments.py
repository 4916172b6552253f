"""Sizes and cameras as callers give them: plain numbers, or a HostError that names the argument.

Lists, tuples, NumPy arrays and tensors are all taken; ``name`` is the argument, for the message.
"""

from __future__ import annotations

import math
import os
from numbers import Real
from typing import Any, NoReturn

from clipdepth_plugin.errors import HostError

Size = tuple[int, int]
"""(height, width)."""

StrPath = str | os.PathLike[str]
"""A path as users give it."""

Intrinsics = tuple[float, float, float, float]
"""(fx, fy, cx, cy) in pixels; integer coordinates are pixel centres."""

LARGEST_SIDE = 2**16
_SIZE = f"(height, width) in whole pixels, of 1 to {LARGEST_SIDE}"
_CAMERA = "(fx, fy, cx, cy) or a 3x3 matrix K, finite, with fx and fy positive"
_FOCAL = "a positive, finite focal length in pixels"


def parse_size(value: Any, name: str) -> tuple[int, int]:
    """One (height, width), of two whole numbers."""
    pair = _plain(value)
    if not _is_row(pair, 2) or not all(
        0 < side <= LARGEST_SIDE and side == int(side) for side in pair
    ):
        _refuse(name, value, _SIZE)
    return int(pair[0]), int(pair[1])


def parse_sizes(value: Any, name: str) -> tuple[int, int] | list[tuple[int, int]]:
    """One (height, width) for all images, or one for each."""
    plain = _plain(value)
    if _is_row(plain, 2):
        return parse_size(plain, name)
    if not isinstance(plain, list):
        _refuse(name, value, f"{_SIZE}, or one such pair for each image")
    return [parse_size(pair, f"{name}[{i}]") for i, pair in enumerate(plain)]


def parse_camera(value: Any, name: str) -> Intrinsics:
    """(fx, fy, cx, cy) of one camera, given so or as a 3x3 matrix K."""
    return _camera(_plain(value), name)


def parse_intrinsics(value: Any, count: int) -> list[Intrinsics | None]:
    """(fx, fy, cx, cy) for each image.

    ``value``: one camera for all ``count`` images, or one (None where it is not known) for each.
    """
    plain = _plain(value)
    if _is_row(plain, 4) or _is_matrix(plain):
        return [_camera(plain, "intrinsics") for _ in range(count)]
    if not isinstance(plain, list):
        _refuse("intrinsics", value, f"{_CAMERA}, or one such camera for each image")
    _check_count("intrinsics", plain, count)
    return [
        None if camera is None else _camera(camera, f"intrinsics[{i}]")
        for i, camera in enumerate(plain)
    ]


def parse_focal(value: Any, count: int) -> list[float | None]:
    """A focal length in pixels for each image.

    ``value``: one for all ``count`` images, or one (None where it is not known) for each.
    """
    plain = _plain(value)
    if not isinstance(plain, list):
        return [_focal(plain, "focal_px")] * count
    _check_count("focal_px", plain, count)
    return [
        None if focal is None else _focal(focal, f"focal_px[{i}]") for i, focal in enumerate(plain)
    ]


def _plain(value: Any) -> Any:
    """Lists of numbers, nested as ``value`` is; what has no such form comes back as it is."""
    if hasattr(value, "tolist"):  # a tensor, an array or one of their scalars
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold (NaN and infinities are left to the caller)."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_row(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(_is_number, value))


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_row(row, 3) for row in value)


def _camera(value: Any, name: str) -> Intrinsics:
    if _is_matrix(value):
        (fx, skew, cx), (zero, fy, cy), last = value
        if (skew, zero, last) != (0, 0, [0, 0, 1]):
            _refuse(name, value, "K as [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    elif _is_row(value, 4):
        fx, fy, cx, cy = value
    else:
        _refuse(name, value, _CAMERA)
    camera = (float(fx), float(fy), float(cx), float(cy))
    if not all(map(math.isfinite, camera)) or min(camera[:2]) <= 0:
        _refuse(name, value, _CAMERA)
    return camera


def _focal(value: Any, name: str) -> float:
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        _refuse(name, value, _FOCAL)
    return float(value)


def _check_count(name: str, given: list[Any], count: int) -> None:
    if len(given) != count:
        raise HostError(f"{name}: {len(given)} given for {count} images")


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    raise HostError(f"{name}: got {shown}, expected {expected}")

"""Sizes, cameras and ranges as callers and files give them: plain numbers, or a HostError.

Lists, tuples, NumPy arrays and tensors are all taken; ``name`` says in the message where the value
stands: the argument, or the file and its key. The same checks hold for the API and for every file.
"""

from __future__ import annotations

import math
import os
from numbers import Real
from typing import Any, Literal, NoReturn

from clipdepth_plugin.errors import ClipDepthError, HostError, quoted

Size = tuple[int, int]
"""(height, width)."""

Units = Literal["metres", "inverse depth"]
"""``metres``: planar z. ``inverse depth``: known up to each picture's own scale and shift, larger
is nearer; never called metres."""

StrPath = str | os.PathLike[str]
"""A path as users give it."""

Intrinsics = tuple[float, float, float, float]
"""(fx, fy, cx, cy) in pixels; integer coordinates are pixel centres."""

MAX_PIXELS = 2**28
"""Of a map: 1 GiB of float32."""

_SIZE = f"(height, width) in whole pixels, both positive, at most {MAX_PIXELS} pixels in all"
_CAMERA = "(fx, fy, cx, cy) or a 3x3 matrix K, finite, with fx and fy positive"
_FOCAL = "a positive, finite focal length in pixels"

# Of pixels, metres and scales: beyond any lens or scene, and products stay in float32.
_LEAST, _MOST = 1e-9, 1e9
_NESTING = 4  # (image, row, column, scalar)
_ITEMS = 100_000
_SKEW = 1e-6  # of the focal length: what is left of it by products of matrices


def parse_size(value: Any, name: str) -> tuple[int, int]:
    """One (height, width), of two whole numbers."""
    pair = _plain(value)
    if not _is_row(pair, 2) or not all(
        0 < side <= MAX_PIXELS and side == int(side) for side in pair
    ):
        _refuse(name, value, _SIZE)
    height, width = map(int, pair)
    if height * width > MAX_PIXELS:
        _refuse(name, value, _SIZE)
    return height, width


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
    if _is_row(plain, 4) or _is_matrix(plain, 3, 3) or _wrong_matrix(plain):
        return [_camera(plain, "intrinsics") for _ in range(count)]
    if not isinstance(plain, list):
        _refuse("intrinsics", value, f"{_CAMERA}, or one such camera for each image")
    _check_count("intrinsics", plain, count)
    return [
        None if camera is None else _camera(camera, f"intrinsics[{i}]")
        for i, camera in enumerate(plain)
    ]


def parse_focal_length(value: Any, name: str) -> float:
    """One focal length in pixels."""
    return _number(value, name, _FOCAL)


def parse_focal(value: Any, count: int) -> list[float | None]:
    """A focal length in pixels for each image.

    ``value``: one for all ``count`` images, or one (None where it is not known) for each.
    """
    plain = _plain(value)
    if not isinstance(plain, list):
        return [parse_focal_length(plain, "focal_px")] * count
    _check_count("focal_px", plain, count)
    return [
        None if focal is None else parse_focal_length(focal, f"focal_px[{i}]")
        for i, focal in enumerate(plain)
    ]


def parse_metres(value: Any, name: str, *, zero: bool = False) -> float:
    """A depth in metres, or the stored value of one: finite and above 0 (``zero``: or 0)."""
    return _number(value, name, f"a finite number {'from 0 on' if zero else 'above 0'}", zero=zero)


def parse_numbers(value: Any, count: int, name: str, *, positive: bool = False) -> list[float]:
    """So many finite numbers."""
    row = _plain(value)
    low = 0 if positive else -_MOST
    if not (_is_row(row, count) and all(low < x < _MOST for x in row)):
        _refuse(name, value, f"{count} finite{' positive' * positive} numbers")
    return [float(x) for x in row]


def parse_count(value: Any, name: str) -> int:
    """A whole number from 1 on, of what fits in memory."""
    plain = _plain(value)
    if not (_is_number(plain) and 1 <= plain <= MAX_PIXELS and plain == int(plain)):
        _refuse(name, value, "a whole number from 1 on")
    return int(plain)


def check_type(value: Any, kind: type, name: str, error: type[ClipDepthError] = HostError) -> None:
    """Whether an argument is of the type that its function takes."""
    if not isinstance(value, kind):
        raise error(f"{name}: got a {type(value).__name__}, expected a {kind.__name__}")


def _plain(value: Any, nesting: int = _NESTING) -> Any:
    """Lists of numbers, nested as ``value`` is; what has no such form comes back as it is."""
    if hasattr(value, "tolist"):  # a tensor, an array or one of their scalars
        value = _listed(value)
    if isinstance(value, list | tuple) and nesting and len(value) <= _ITEMS:
        return [_plain(item, nesting - 1) for item in value]
    return value


def _listed(value: Any) -> Any:
    try:
        return value.tolist() if math.prod(getattr(value, "shape", ())) <= _ITEMS else value
    except Exception:  # noqa: BLE001 (tensors of the meta device, sparse ones, classes of their own)
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


def _is_matrix(value: Any, rows: int, columns: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(_is_row(row, columns) for row in value)
    )


def _wrong_matrix(value: Any) -> str:
    """What to do with a matrix that is not K, but has it; empty for anything else."""
    for rows in (3, 4):
        if _is_matrix(value, rows, 4) and value[2][:3] == [0, 0, 1]:
            return f"its upper left 3x3 part, [:3, :3], of the {rows}x4 matrix"
    if _is_row(value, 9) or _is_row(value, 16):
        return "the numbers as 3 rows of 3"
    return ""


def _camera(value: Any, name: str) -> Intrinsics:
    if instead := _wrong_matrix(value):
        _refuse(name, value, f"{_CAMERA}: give {instead}")
    if _is_matrix(value, 3, 3):
        (fx, skew, cx), (zero, fy, cy), last = value
        if not abs(skew) + abs(zero) <= _SKEW * (abs(fx) + abs(fy)) or last != [0, 0, 1]:
            turned = [row[2] for row in value] == [0, 0, 1]
            hint = "; this is its transpose" if turned else ""
            _refuse(name, value, f"K as [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]{hint}")
    elif _is_row(value, 4):
        fx, fy, cx, cy = value
    else:
        _refuse(name, value, _CAMERA)
    if not (min(fx, fy) > 0 and all(abs(x) <= _MOST for x in (fx, fy, cx, cy))):
        _refuse(name, value, _CAMERA)
    return float(fx), float(fy), float(cx), float(cy)


def _number(value: Any, name: str, expected: str, *, zero: bool = False) -> float:
    plain = _plain(value)
    if not (_is_number(plain) and (_LEAST <= plain <= _MOST or (zero and plain == 0))):
        _refuse(name, value, expected)
    return float(plain)


def _check_count(name: str, given: list[Any], count: int) -> None:
    if len(given) != count:
        raise HostError(f"{name}: {len(given)} given for {count} images")


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise HostError(f"{name}: got {quoted(value)}, expected {expected}")

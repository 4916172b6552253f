"""Pictures that tell, by what a tower sees of them, whose row a view is of and where it lies.

Axes: B rows of a batch, H W a picture's size.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from clipdepth_plugin.adapters.processors.behaviour import geometry_of
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ViewGeometry

INSTEAD = ".depths, or plugin.capture(), whose order is the policy's own"
"""What is read where cameras have no names."""


def is_picture(value: object) -> bool:
    """Whether it is a camera's pictures, in one of the forms of ``picture_size``."""
    if not isinstance(value, Tensor) or value.ndim < 3:
        return False
    return 3 in (value.shape[-3], value.shape[-1])


def rows_of(picture: Tensor) -> int:
    """How many rows a batch has, by a camera's pictures."""
    return 1 if picture.ndim == 3 else len(picture)


def picture_size(picture: Tensor) -> Size:
    """(H, W) of a camera's pictures ([B, [T,]] 3, H, W) or ([B, [T,]] H, W, 3)."""
    height, width = picture.shape[-2:] if picture.shape[-3] == 3 else picture.shape[-3:-1]
    return height, width


def like(picture: Tensor, x_B3HW: Tensor) -> Tensor:
    """Pictures in 0..1 in the place of a camera's, in its shape and numbers."""
    x = x_B3HW if picture.shape[-3] == 3 else x_B3HW.permute(0, 2, 3, 1)
    x = x[0] if picture.ndim == 3 else x.view(len(x), *[1] * (picture.ndim - 4), *x.shape[1:])
    if not picture.is_floating_point():
        x = (x * 255).round()
    return x.expand(picture.shape).to(picture)


def row_codes(count: int) -> Tensor:
    """(B, 3) colours in 0..1 that tell rows apart: the digits of their numbers."""
    base, row_B = _base(count), torch.arange(count)
    digits_B3 = torch.stack([row_B // base**2, row_B // base % base, row_B % base], dim=1)
    return digits_B3 / (base - 1)


def row_of(code_3: Tensor, count: int) -> int:
    """The row that has a colour of ``row_codes``."""
    base = _base(count)
    high, middle, low = map(int, (code_3 * (base - 1)).round().tolist())
    return high * base**2 + middle * base + low


def _base(count: int) -> int:
    """Of numbers of three digits, as many as there are rows."""
    return next(base for base in itertools.count(2) if base**3 >= count)


def place_of(rgb_3HW: Tensor, size: Size) -> ViewGeometry:
    """Where a view of ``coordinates`` lies."""
    try:
        return geometry_of(rgb_3HW, size)
    except HostError as error:
        raise HostError(
            "what the tower sees of a picture is not the picture resized, cropped and padded: "
            f"read {INSTEAD}"
        ) from error

"""Pictures as callers give them, files, arrays and PIL images, as RGB images.

Axes: H W pixels.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ImageError, quoted
from clipdepth_plugin.files.pictures import load_image

Picture = StrPath | NDArray[np.uint8] | Image.Image
"""A file, (H, W, 3) uint8 RGB, or an image of mode RGB."""


def as_image(picture: Any, name: str) -> Image.Image:
    """An image of mode RGB; the order of an array's three colours can't be seen from it.

    Raises:
        ImageError: It is none, or can't be read; says what to do.
    """
    if isinstance(picture, str | os.PathLike):
        return load_image(picture)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(_checked(picture, name)))
    if not isinstance(picture, Image.Image):
        raise ImageError(
            f"{name}: got {quoted(picture)}, a {type(picture).__name__}; expected a picture's "
            "file, an array (H, W, 3) of uint8 RGB, or a PIL image"
        )
    if picture.mode != "RGB":
        raise ImageError(f'{name} has mode {picture.mode}, expected RGB; give .convert("RGB")')
    if 0 in picture.size:
        raise ImageError(f"{name}: has no pixels")
    try:
        picture.load()
    except Exception as problem:  # a damaged file makes Pillow's decoders raise almost anything
        raise ImageError(f"{name}: damaged, or can't be read ({problem})") from problem
    return picture


def _checked(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 3 and 0 not in shape:
        if array.dtype == np.uint8:
            return array
        cure = "expected uint8, 0..255, not normalised"
        if array.dtype.kind == "f":
            with np.errstate(all="ignore"):
                odd = not np.isfinite(array).all()
                small = not odd and array.min() >= 0 and array.max() <= 1
            cure += "; it has NaN or infinite values" if odd else ""
            cure += ": give (255 * x).round().astype(np.uint8)" if small else ""
    elif 0 in shape:
        cure = "it has no pixels"
    elif array.ndim == 2 or (array.ndim == 3 and shape[2] == 1):
        cure = "grey: give np.repeat(x.reshape(H, W, 1), 3, axis=2)"
    elif array.ndim == 3 and shape[2] == 4:
        cure = "with alpha: give the colours alone, x[..., :3]"
    elif array.ndim == 3 and shape[0] in (3, 4):
        cure = "colours first: give x[:3].transpose(1, 2, 0)"
    elif array.ndim == 4:
        cure = "several pictures: give them as a list to batch(...)"
    else:
        cure = "that is no picture"
    raise ImageError(
        f"{name}: an array {shape} of {array.dtype}, expected a picture (H, W, 3) of uint8 RGB; "
        f"{cure}"
    )

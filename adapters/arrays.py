"""Pictures as a vision tower takes them, in NumPy, and where they show the picture.

What runs without torch takes them from here; ``pixels.py`` gives the same as tensors.

Axes: B pictures, H W pixels, C the three colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.errors import ImageError
from clipdepth_plugin.maps.geometry import ViewGeometry

Pixels = NDArray[np.float32]

ONE_COLOUR = 1e-3
"""A picture is of one colour where normalised pixels vary less: a step of 8 bits is 4e-3 or more.
Not 0, as a resize of floats makes rounding errors."""


def frames(
    images: Sequence[Image.Image], preprocessing: Preprocessing
) -> tuple[Pixels, list[ViewGeometry]]:
    """Turns pictures into the normalised pixels of a tower, one view of each; see ``frame``.

    Returns:
        (B, 3, H, W) float32, (rgb / 255 - mean) / std, and where each lies in its picture.
    """
    pixels_B3HW = np.empty((len(images), 3, *preprocessing.size), np.float32)
    geometries = []
    for index, image in enumerate(images):
        check_type(image, Image.Image, f"picture {index}", ImageError)
        if image.mode != "RGB":
            raise ImageError(
                f"picture {index} has mode {image.mode}, expected RGB; read it with load_image"
            )
        rgb_3HW, geometry = frame(image, preprocessing)
        pixels_B3HW[index] = normalised(rgb_3HW, preprocessing)
        geometries.append(geometry)
    return pixels_B3HW, geometries


def frame(image: Image.Image, preprocessing: Preprocessing) -> tuple[Pixels, ViewGeometry]:
    """A picture (RGB) as the tower is shown it, before normalisation, with the host's filter.

    Where the host has no rule for one view the picture is squashed. Padding has the mean colour.

    Returns:
        (3, H, W) float32 in 0..1, and where it lies in the picture.
    """
    if preprocessing.whole_rule is None:
        preprocessing = preprocessing.whole()
    size = (image.height, image.width)
    geometry = preprocessing.whole_view(size)
    if preprocessing.resize == "pad":
        # Padded before the resize, as the host does it: the offset in the view is no whole number.
        side = max(size)
        square = Image.new("RGB", (side, side), tuple(int(255 * c) for c in preprocessing.mean))
        square.paste(image, ((side - size[1]) // 2, (side - size[0]) // 2))
        return _resized(square, geometry.view_size, preprocessing), geometry
    scaled = tuple(max(1, round(s * by)) for s, by in zip(size, geometry.scale, strict=True))
    rgb_3hw = _resized(image, scaled, preprocessing)
    if scaled == geometry.view_size:
        return rgb_3hw, geometry
    rgb_3HW = np.empty((3, *geometry.view_size), np.float32)
    rgb_3HW[:] = np.array(preprocessing.mean, np.float32)[:, None, None]
    # Negative where the picture is cropped.
    spans = [
        (max(0, int(offset)), min(view, int(offset) + side), int(offset))
        for offset, view, side in zip(geometry.offset, geometry.view_size, scaled, strict=True)
    ]
    (top, bottom, down), (left, right, along) = spans
    seen_3hw = rgb_3hw[:, top - down : bottom - down, left - along : right - along]
    rgb_3HW[:, top:bottom, left:right] = seen_3hw
    return rgb_3HW, geometry


def normalised(rgb_3HW: Pixels, preprocessing: Preprocessing) -> Pixels:
    """RGB in 0..1 as the tower takes it: (rgb - mean) / std."""
    mean_311, std_311 = (
        np.array(three, np.float32)[:, None, None]
        for three in (preprocessing.mean, preprocessing.std)
    )
    with np.errstate(all="ignore"):
        return (rgb_3HW - mean_311) / std_311


def of_one_colour(pixels_3HW: Pixels) -> bool:
    """Whether no colour of normalised pixels varies: such a picture has no depth."""
    return bool(np.ptp(pixels_3HW, axis=(1, 2)).max() <= ONE_COLOUR)


def _resized(image: Image.Image, size: tuple[int, ...], preprocessing: Preprocessing) -> Pixels:
    """(3, *size) float32 in 0..1."""
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    rgb_HWC = np.asarray(image.resize((size[1], size[0]), resampling))
    return rgb_HWC.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)

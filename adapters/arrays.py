"""Pictures as a vision tower takes them, in NumPy, and where they show the picture.

What runs without torch takes them from here; ``pixels.py`` gives the same as tensors.

Axes: B pictures, H W pixels, C the three colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.adapters.preprocessing import Preprocessing, Triple
from clipdepth_plugin.adapters.processors.whole import PadToSquare
from clipdepth_plugin.arguments import Size, check_type
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
        check_picture(image, index)
        rgb_3HW, geometry = frame(image, preprocessing)
        pixels_B3HW[index] = normalised(rgb_3HW, preprocessing)
        geometries.append(geometry)
    return pixels_B3HW, geometries


def check_picture(image: Image.Image, index: int) -> None:
    """Refuses what is no RGB picture; an ImageError says which."""
    check_type(image, Image.Image, f"picture {index}", ImageError)
    if image.mode != "RGB":
        raise ImageError(
            f"picture {index} has mode {image.mode}, expected RGB; read it with load_image"
        )


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
    if isinstance(preprocessing.whole_rule, PadToSquare):
        # Padded before the resize, as the host does it: the offset in the view is no whole number.
        side = max(size)
        square = Image.new("RGB", (side, side), tuple(int(255 * c) for c in preprocessing.mean))
        square.paste(image, ((side - size[1]) // 2, (side - size[0]) // 2))
        return _resized(square, geometry.view_size, preprocessing), geometry
    if preprocessing.resize is None:
        return part(image, geometry, preprocessing), geometry
    scaled = tuple(max(1, round(s * by)) for s, by in zip(size, geometry.scale, strict=True))
    rgb_3hw = _resized(image, scaled, preprocessing)
    if scaled == geometry.view_size:
        return rgb_3hw, geometry
    top, left = map(int, geometry.offset)  # negative where the picture is cropped
    return _placed(rgb_3hw, (top, left), geometry.view_size, preprocessing.mean), geometry


def part(image: Image.Image, geometry: ViewGeometry, preprocessing: Preprocessing) -> Pixels:
    """One view of a picture (RGB), (3, H, W) float32 in 0..1: any part, beside it padding."""
    spans = []  # of the picture, and of the view
    for side, view, scale, offset in zip(
        (image.height, image.width),
        geometry.view_size,
        geometry.scale,
        geometry.offset,
        strict=True,
    ):
        first, last = max(0, round(offset)), min(view, round(side * scale + offset))
        first = min(first, view - 1)
        last = max(last, first + 1)
        # Rounded where they are whole but for the last bits.
        start, end = (round((edge - offset) / scale, 6) for edge in (first, last))
        spans.append(((max(0.0, start), min(float(side), end)), (first, last)))
    ((top, bottom), (above, below)), ((left, right), (before, behind)) = spans
    box, to = (left, top, right, bottom), (below - above, behind - before)
    fill = preprocessing.shown_rule.padding or preprocessing.mean
    if bottom <= top or right <= left:  # a tile of padding alone
        return _filled(geometry.view_size, fill)
    rgb_3hw = _resized(image, to, preprocessing, box)
    return _placed(rgb_3hw, (above, before), geometry.view_size, fill)


def _filled(size: Size, colour: Triple) -> Pixels:
    """(3, H, W) of one colour."""
    rgb_3HW = np.empty((3, *size), np.float32)
    rgb_3HW[:] = np.array(colour, np.float32)[:, None, None]
    return rgb_3HW


def _placed(rgb_3hw: Pixels, corner: tuple[int, int], size: Size, colour: Triple) -> Pixels:
    """On a canvas (3, H, W) of a colour, its top left corner there; cropped where it is larger."""
    rgb_3HW = _filled(size, colour)
    spans = [
        (max(0, first), min(whole, first + side), first)
        for first, whole, side in zip(corner, size, rgb_3hw.shape[1:], strict=True)
    ]
    (top, bottom, down), (left, right, along) = spans
    seen_3hw = rgb_3hw[:, top - down : bottom - down, left - along : right - along]
    rgb_3HW[:, top:bottom, left:right] = seen_3hw
    return rgb_3HW


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


def _resized(
    image: Image.Image,
    size: tuple[int, ...],
    preprocessing: Preprocessing,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """(3, *size) float32 in 0..1, of the box (left, top, right, bottom)."""
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    rgb_HWC = np.asarray(image.resize((size[1], size[0]), resampling, box))
    return rgb_HWC.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)

"""The pixels that a vision tower takes, and where they show the picture.

Axes: B pictures, H W pixels, C the three colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.whole import PadToSquare
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.errors import ImageError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


def to_pixels(images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """Turns pictures into the normalised pixels of a tower; see ``frames``."""
    return frames(images, preprocessing)[0]


def frames(
    images: Sequence[Image.Image], preprocessing: Preprocessing
) -> tuple[Tensor, list[ViewGeometry]]:
    """Turns pictures into the normalised pixels of a tower, one view of each; see ``frame``.

    Returns:
        (B, 3, H, W) float32, (rgb / 255 - mean) / std, and where each lies in its picture.
    """
    pixels_B3HW = torch.empty(len(images), 3, *preprocessing.size)
    geometries = []
    for index, image in enumerate(images):
        _check_picture(image, index)
        rgb_3HW, geometry = frame(image, preprocessing)
        pixels_B3HW[index] = normalised(rgb_3HW, preprocessing)
        geometries.append(geometry)
    return pixels_B3HW, geometries


def _check_picture(image: Image.Image, index: int) -> None:
    check_type(image, Image.Image, f"picture {index}", ImageError)
    if image.mode != "RGB":
        raise ImageError(
            f"picture {index} has mode {image.mode}, expected RGB; read it with load_image"
        )


def frame(image: Image.Image, preprocessing: Preprocessing) -> tuple[Tensor, ViewGeometry]:
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
    rgb_3HW = _resized(image, scaled, preprocessing)
    if scaled == geometry.view_size:
        return rgb_3HW, geometry
    (top, left), (height, width) = map(int, geometry.offset), geometry.view_size
    # Negative where the picture is cropped.
    sides = (left, width - left - scaled[1], top, height - top - scaled[0])
    return _padded(rgb_3HW, sides, preprocessing.mean), geometry


def shown(
    images: Sequence[Image.Image], preprocessing: Preprocessing
) -> tuple[list[Tensor], list[ImageViews]]:
    """Pictures as a host shows them to its tower: all views of each, normalised.

    One view, by ``frames``, where the host has a rule for that.

    Returns:
        The views (3, H, W) of all pictures in order, and how they lie in the picture of each.

    Raises:
        ImageError: One is no RGB picture.
    """
    if not preprocessing.makes_own_sizes:
        pixels_B3HW, geometries = frames(images, preprocessing)
        return [*pixels_B3HW], [ImageViews((one,)) for one in geometries]
    views: list[Tensor] = []
    placed: list[ImageViews] = []
    for index, image in enumerate(images):
        _check_picture(image, index)
        placed.append(preprocessing.views((image.height, image.width)))
        views += [
            normalised(part(image, view, preprocessing), preprocessing) for view in placed[-1].views
        ]
    return views, placed


def part(image: Image.Image, geometry: ViewGeometry, preprocessing: Preprocessing) -> Tensor:
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
    height, width = geometry.view_size
    fill = preprocessing.shown_rule.padding or preprocessing.mean
    if bottom <= top or right <= left:  # a tile of padding alone
        return torch.tensor(fill).view(3, 1, 1).repeat(1, height, width)
    rgb_3HW = _resized(image, to, preprocessing, box)
    return _padded(rgb_3HW, (before, width - behind, above, height - below), fill)


def normalised(rgb_3HW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB in 0..1 as the tower takes it: (rgb - mean) / std."""
    mean_311 = torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1)
    std_311 = torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1)
    return (rgb_3HW - mean_311) / std_311


def _padded(
    rgb_3HW: Tensor, sides: tuple[int, int, int, int], colour: tuple[float, float, float]
) -> Tensor:
    """With borders of a colour: left, right, above, below; cropped where they are negative."""
    planes = zip(rgb_3HW, colour, strict=True)
    return torch.stack([F.pad(plane_HW, sides, value=one) for plane_HW, one in planes])


def _resized(
    image: Image.Image,
    size: tuple[int, ...],
    preprocessing: Preprocessing,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """(3, *size) float32 in 0..1, of the box (left, top, right, bottom)."""
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    rgb_HWC = np.array(image.resize((size[1], size[0]), resampling, box))
    return torch.from_numpy(rgb_HWC).permute(2, 0, 1).contiguous().to(torch.float32) / 255.0

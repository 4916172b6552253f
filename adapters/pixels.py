"""The pixels that a vision tower takes, as tensors, and where they show the picture.

Axes: B pictures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters import arrays
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


def to_pixels(images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    """Turns pictures into the normalised pixels of a tower; see ``frames``."""
    return frames(images, preprocessing)[0]


def frames(
    images: Sequence[Image.Image], preprocessing: Preprocessing
) -> tuple[Tensor, list[ViewGeometry]]:
    """(B, 3, H, W) float32 of pictures; see ``arrays.frames``."""
    pixels_B3HW, geometries = arrays.frames(images, preprocessing)
    return torch.from_numpy(pixels_B3HW), geometries


def frame(image: Image.Image, preprocessing: Preprocessing) -> tuple[Tensor, ViewGeometry]:
    """(3, H, W) float32 in 0..1 of a picture; see ``arrays.frame``."""
    rgb_3HW, geometry = arrays.frame(image, preprocessing)
    return torch.from_numpy(rgb_3HW), geometry


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
        arrays.check_picture(image, index)
        placed.append(preprocessing.views((image.height, image.width)))
        views += [
            normalised(part(image, view, preprocessing), preprocessing) for view in placed[-1].views
        ]
    return views, placed


def part(image: Image.Image, geometry: ViewGeometry, preprocessing: Preprocessing) -> Tensor:
    """(3, H, W) float32 in 0..1 of a view; see ``arrays.part``."""
    return torch.from_numpy(arrays.part(image, geometry, preprocessing))


def normalised(rgb_3HW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB in 0..1 as the tower takes it: (rgb - mean) / std."""
    return torch.from_numpy(arrays.normalised(rgb_3HW.numpy(), preprocessing))

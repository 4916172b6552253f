"""Where the maps of a tower pass go: its own input, any size, or the user's images.

All take a head's native maps (B, 1, h, w), one tensor for each ``Views`` of one size.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.features import Views
from clipdepth_plugin.maps.geometry import ImageViews

Join = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""One (1, H, W) map of an image from those of its tiles and of its overview; see ``stitch``."""


def at_pixels(natives: Sequence[Tensor], views: Sequence[Views], patch_size: Size) -> list[Tensor]:
    """The maps of all views, each (B, 1, H, W) at its views' own size.

    Pixels beyond the last patch repeat the last; what patches show beyond the picture is cropped.
    """
    placed = []
    for native_B1HW, one in zip(natives, views, strict=True):
        (height, width), (seen_h, seen_w) = one.pixel_size, seen_size(one, patch_size)
        map_B1HW = resize(native_B1HW, (seen_h, seen_w))
        if (seen_h, seen_w) != one.pixel_size:
            beyond = (0, max(width - seen_w, 0), 0, max(height - seen_h, 0))
            map_B1HW = F.pad(map_B1HW[..., :height, :width], beyond, mode="replicate")
        placed.append(map_B1HW)
    return placed


def at_size(
    natives: Sequence[Tensor], views: Sequence[Views], patch_size: Size, size: Size
) -> Tensor:
    """The maps of all views at one size: (B, 1, *size)."""
    whole = whole_views(natives, views, patch_size)
    resized = [resize(map_B1HW, size) for map_B1HW in whole]
    return torch.cat(resized) if len(resized) > 1 else resized[0]


def in_images(
    natives: Sequence[Tensor],
    views: Sequence[Views],
    patch_size: Size,
    images: Sequence[ImageViews],
    join: Join,
) -> list[Tensor]:
    """One (1, H, W) map of each image at its size; NaN where the tower did not see it."""
    maps = (one for map_B1HW in whole_views(natives, views, patch_size) for one in map_B1HW)
    return [_in_image(image, list(islice(maps, len(image))), join) for image in images]


def _in_image(image: ImageViews, maps: list[Tensor], join: Join) -> Tensor:
    placed = [view.to_image(one) for view, one in zip(image.views, maps, strict=True)]
    if len(placed) == 1:
        return placed[0]
    overview_1HW = None if image.overview is None else placed.pop(image.overview)
    return join(placed, overview_1HW)


def whole_views(
    natives: Sequence[Tensor], views: Sequence[Views], patch_size: Size
) -> list[Tensor]:
    """Maps that cover the whole of their views, at any size."""
    return [
        native_B1HW
        if seen_size(one, patch_size) == one.pixel_size
        else at_pixels([native_B1HW], [one], patch_size)[0]
        for native_B1HW, one in zip(natives, views, strict=True)
    ]


def seen_size(views: Views, patch_size: Size) -> Size:
    """(H, W) of the pixels that whole patches cover; the rest, right and below, is unseen."""
    return views.grid[0] * patch_size[0], views.grid[1] * patch_size[1]

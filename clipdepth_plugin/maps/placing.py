"""Where the maps of a tower pass go: its own input, any size, or the user's images.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.features import Views
from clipdepth_plugin.maps.geometry import ImageViews

if TYPE_CHECKING:
    pass

MapsOfViews = tuple[Tensor, Views]
"""A head's native maps (B, 1, H, W), and the views of one size that they show."""

Join = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""One (1, H, W) map of an image from those of its tiles and of its overview; see ``stitch``."""


def at_pixels(native_B1HW: Tensor, views: Views, patch_size: Size) -> Tensor:
    """Native maps at their views' size, cut where patches reach beyond the picture.

    Pixels beyond the last patch repeat the last.
    """
    height, width = views.pixel_size
    seen_h, seen_w = seen_size(views, patch_size)
    seen_B1HW = resize(native_B1HW, (seen_h, seen_w))
    if (seen_h, seen_w) == views.pixel_size:
        return seen_B1HW
    beyond = (0, max(width - seen_w, 0), 0, max(height - seen_h, 0))
    return F.pad(seen_B1HW[..., :height, :width], beyond, mode="replicate")


def at_size(passes: Iterable[MapsOfViews], patch_size: Size, size: Size) -> Tensor:
    """The maps of all views at one size: (B, 1, *size), a tensor of its own."""
    resized = [resize(_whole_views(*maps, patch_size), size) for maps in passes]
    return torch.cat(resized) if len(resized) > 1 else resized[0].clone()


def in_images(
    passes: Iterable[MapsOfViews], patch_size: Size, images: Sequence[ImageViews], join: Join
) -> list[Tensor]:
    """One (1, H, W) map of each image at its size; NaN where the tower did not see it."""
    maps = iter([one for maps in passes for one in _whole_views(*maps, patch_size)])
    return [_in_image(image, list(islice(maps, len(image))), join) for image in images]


def _in_image(image: ImageViews, maps: list[Tensor], join: Join) -> Tensor:
    placed = [view.to_image(one) for view, one in zip(image.views, maps, strict=True)]
    if len(placed) == 1:
        return placed[0].clone()
    overview_1HW = None if image.overview is None else placed.pop(image.overview)
    return join(placed, overview_1HW)


def _whole_views(native_B1HW: Tensor, views: Views, patch_size: Size) -> Tensor:
    """Maps that cover the whole of their views, at any size."""
    whole = seen_size(views, patch_size) == views.pixel_size
    return native_B1HW if whole else at_pixels(native_B1HW, views, patch_size)


def seen_size(views: Views, patch_size: Size) -> Size:
    """(H, W) of the pixels that whole patches cover; the rest, right and below, is unseen."""
    return views.grid[0] * patch_size[0], views.grid[1] * patch_size[1]

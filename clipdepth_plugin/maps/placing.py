"""Where the maps of a tower pass go: its own input, any size, or the user's images.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.adapters.layouts import Views
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.maps.geometry import ImageViews, Size
from clipdepth_plugin.plugin.estimating import estimate

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead

MapsOfViews = tuple[Tensor, Views]
"""A head's native maps (B, 1, H, W), and the views of one size that they show."""

Join = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""One (1, H, W) map of an image from those of its tiles and of its overview; see ``stitch``."""


def at_pixels(native_B1HW: Tensor, views: Views, patch_size: Size) -> Tensor:
    """Native maps at their views' size, cut where patches reach beyond the picture.

    Pixels beyond the last patch repeat the last.
    """
    height, width = views.pixel_size
    seen_h, seen_w = _seen_size(views, patch_size)
    seen_B1HW = resize(native_B1HW, (seen_h, seen_w))
    if (seen_h, seen_w) == views.pixel_size:
        return seen_B1HW
    beyond = (0, max(width - seen_w, 0), 0, max(height - seen_h, 0))
    return F.pad(seen_B1HW[..., :height, :width], beyond, mode="replicate")


def at_size(passes: Iterable[MapsOfViews], patch_size: Size, size: Size) -> Tensor:
    """The maps of all views at one size: (B, 1, *size), a tensor of its own."""
    resized = [resize(_whole_views(*maps, patch_size), size) for maps in passes]
    return torch.cat(resized) if len(resized) > 1 else resized[0].clone()


def estimate_whole(
    head: DepthHead | FusedHead,
    features: TowerFeatures,
    size: Size,
    *,
    patch_size: Size,
    pixel_size: Size,
    auxiliary: bool = False,
) -> DepthEstimate:
    """A head's maps of the whole of the tower's input, as training and evaluation take them.

    ``estimate(head, features, size=size)``, but where patches leave a rim of the input unseen:
    there the maps are put where ``plugin.predict(size=...)`` puts them.

    Args:
        head: Of these features.
        features: Views of one size.
        size: (H, W) of the maps.
        patch_size: The tower's.
        pixel_size: (H, W) of the tower's input.
        auxiliary: Whether to give the auxiliary maps; not of a fused head.
    """
    views = Views(features.batch, features.grid, pixel_size)
    all_seen = _seen_size(views, patch_size) == pixel_size
    at_once = size if all_seen else None
    if auxiliary:
        native: DepthEstimate = cast("DepthHead", head).estimate(features, at_once, auxiliary=True)
    else:
        native = estimate(head, features, size=at_once)
    if all_seen:
        return native

    def placed(map_B1HW: Tensor) -> Tensor:
        return at_size([(map_B1HW, views)], patch_size, size)

    return DepthEstimate(
        placed(native.metres),
        None if native.log_scale is None else placed(native.log_scale),
        tuple(map(placed, native.auxiliary)),
    )


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
    whole = _seen_size(views, patch_size) == views.pixel_size
    return native_B1HW if whole else at_pixels(native_B1HW, views, patch_size)


def _seen_size(views: Views, patch_size: Size) -> Size:
    """(H, W) of the pixels that whole patches cover; the rest, right and below, is unseen."""
    return views.grid[0] * patch_size[0], views.grid[1] * patch_size[1]

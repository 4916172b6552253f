"""The depth of a camera by the name that its policy has for it, in the camera's own picture.

Axes: B pictures of one camera (a batch), H W a picture's size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from clipdepth_plugin.adapters.named_pictures import NamedPictures
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.plugin.reading import DepthPass

NO_NAMES = (
    "this host takes no pictures by name: depth_of reads policies that prepare a batch in a method "
    "of their own (LeRobot's SmolVLA, pi0, pi0.5, pi0-FAST), attached as a whole. Read .depths, or "
    "plugin.capture(): the views come in the order in which the host was given them"
)
NONE_YET = (
    "the policy has prepared no pictures in this thread (and asyncio task) since attach: run it on "
    "a batch first"
)


def depth_of_camera(
    named: NamedPictures | None, key: str, intrinsics: Cameras | None, focal_px: Focals | None
) -> Tensor:
    """As ``DepthPlugin.depth_of``, of the last batch of pictures by name."""
    if named is None:
        raise NoDepthError(NONE_YET)
    one, pixels_B3HW, real_B = named.find(key)
    shown = cast("DepthPass", one)
    size = picture_size(named.batch[key])
    if size == tuple(pixels_B3HW.shape[-2:]):
        maps = shown.predict(size, intrinsics=intrinsics, focal_px=focal_px)
    else:
        sizes = [size] * len(pixels_B3HW)
        maps = shown.predict(original_sizes=sizes, intrinsics=intrinsics, focal_px=focal_px)
    maps_B1HW = maps if isinstance(maps, Tensor) else torch.stack(maps)
    maps_B1HW[~real_B.to(maps_B1HW.device)] = torch.nan
    return maps_B1HW


def picture_size(picture: Tensor) -> Size:
    """(H, W) of a camera's pictures (B, [T,] 3, H, W) or (B, H, W, 3)."""
    height, width = picture.shape[-2:]
    if picture.ndim == 4 and picture.shape[1] != 3:
        height, width = picture.shape[1:3]
    return height, width

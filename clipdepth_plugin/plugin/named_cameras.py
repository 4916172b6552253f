"""The depth of a camera by the name that its policy has for it, in the camera's own picture.

Axes: B pictures of one camera (a batch), H W a picture's size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from clipdepth_plugin.adapters.named_pictures import NamedPictures
from clipdepth_plugin.adapters.shown_again import ShownAgain
from clipdepth_plugin.arguments import parse_focal, parse_intrinsics
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.maps.cameras import Cameras, Focals, views_themselves
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.plugin.reading import DepthPass

NO_NAMES = (
    "this host takes no pictures by name: depth_of reads LeRobot's policies, attached as a whole. "
    "Read .depths, or plugin.capture(): the views come in the order in which the host was given "
    "them"
)
NONE_YET = (
    "the policy has not run in this thread (and asyncio task) since attach, its last run ended in "
    "an error, or it was compiled as a whole: run it (select_action, predict_action_chunk, "
    "forward) on a batch first"
)


def depth_of_camera(
    again: ShownAgain,
    named: NamedPictures | None,
    key: str,
    intrinsics: Cameras | None,
    focal_px: Focals | None,
) -> Tensor:
    """As ``DepthPlugin.depth_of``, of the last batch of pictures by name."""
    if named is None:
        raise NoDepthError(NONE_YET)
    found = again.find(named, key)
    count = len(found.views)
    cameras = None if intrinsics is None else parse_intrinsics(intrinsics, count)
    focals = None if focal_px is None else parse_focal(focal_px, count)
    maps: list[Any] = [None] * count
    for one in dict.fromkeys(one for one, _ in found.views):
        shown = cast("DepthPass", one)
        rows = {view: row for row, (other, view) in enumerate(found.views) if other is one}
        images = views_themselves(shown.sizes)
        for view in rows:
            images[view] = ImageViews((found.geometry,))
        lenses = (_of_views(given, rows, len(images)) for given in (cameras, focals))
        placed = shown.in_images(images, *lenses)
        for view, row in rows.items():
            maps[row] = placed[view][:1]
    maps_B1HW = torch.stack(maps)
    maps_B1HW[~found.real_B.to(maps_B1HW.device)] = torch.nan
    return maps_B1HW


def _of_views(given: list[Any] | None, rows: dict[int, int], count: int) -> list[Any] | None:
    """What is said of rows, for each view of a pass; None of those that show another camera."""
    return None if given is None else [given[rows[v]] if v in rows else None for v in range(count)]

"""One depth map of an image from the maps of the views a host cut it into.

Axes: H W the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipdepth_plugin.errors import HostError


def stitch(tiles: Sequence[Tensor], overview_1HW: Tensor | None = None) -> Tensor:
    """Pastes tiles into one map.

    A tile is a zoomed view, so its own scale is not to be trusted: each is first multiplied by
    the median ratio of the overview to it, over the area both see. Without an overview tiles are
    pasted as they are. Where tiles overlap the later one is seen.

    Args:
        tiles: (1, H, W) positive metres at the image's size each, NaN where the tile sees nothing
            (``ViewGeometry.to_image``).
        overview_1HW: The same of the view that shows the whole image.

    Returns:
        (1, H, W) metres; NaN where no view sees the image.

    Raises:
        HostError: There are no views, their sizes differ, or a tile and the overview share no area.
    """
    views = [*tiles] if overview_1HW is None else [overview_1HW, *tiles]
    sizes = {tuple(view.shape) for view in views}
    if len(sizes) != 1:
        raise HostError(
            f"one image's views have maps of sizes {sorted(sizes)}: expected one size, the image's"
        )
    whole_1HW = torch.full_like(views[0], torch.nan) if overview_1HW is None else views[0].clone()
    for index, tile_1HW in enumerate(tiles):
        seen_1HW = tile_1HW.isfinite()
        if not bool(seen_1HW.any()):
            continue  # A tile of padding alone.
        if overview_1HW is not None:
            both_1HW = seen_1HW & overview_1HW.isfinite()
            if not bool(both_1HW.any()):
                raise HostError(f"tile {index} and the overview share no area of the image")
            ratio = (overview_1HW[both_1HW].log() - tile_1HW[both_1HW].log()).median().exp()
        else:
            ratio = tile_1HW.new_ones(())
        whole_1HW = torch.where(seen_1HW, tile_1HW * ratio, whole_1HW)
    return whole_1HW

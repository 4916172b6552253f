"""Maps of a view carried back to its picture, in NumPy: as ``ViewGeometry.to_image``.

Axes: H W the picture's pixels, h w those of a map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.maps.geometry import ViewGeometry

Floats = NDArray[np.float32]


def to_image(map_hw: Floats, view: ViewGeometry) -> Floats:
    """A map (h, w) that covers the whole view, at the picture's size; NaN where it is not seen."""
    whole = view == ViewGeometry.squashed(view.image_size, view.view_size)
    placed, outside = map_hw, []
    for axis, cells in enumerate(map_hw.shape):
        edges = np.arange(view.image_size[axis], dtype=np.float32) + np.float32(0.5)
        if whole:
            in_cells = edges * (cells / view.image_size[axis])
        else:
            in_view = edges * view.scale[axis] + view.offset[axis]
            outside.append((in_view < 0) | (in_view > view.view_size[axis]))
            first, last = view.shown(axis, cells)
            in_cells = (in_view / view.view_size[axis] * cells).clip(first + 0.5, last - 0.5)
        placed = _sampled(placed, (in_cells - 0.5).clip(0, cells - 1), axis)
    if outside:
        placed[outside[0][:, None] | outside[1][None]] = np.nan
    return placed


def _sampled(map_hw: Floats, places: Floats, axis: int) -> Floats:
    """Linear between the two values at both sides of each place, along an axis."""
    before = np.floor(places).astype(np.intp)
    after = np.minimum(before + 1, map_hw.shape[axis] - 1)
    share = (places - before).astype(np.float32)
    if axis == 0:
        share = share[:, None]
    low, high = map_hw.take(before, axis), map_hw.take(after, axis)
    sampled: Floats = low + (high - low) * share
    return sampled

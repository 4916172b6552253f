"""From a sample to what the tower sees: picture, depth and camera carried together.

Axes: H W pixels of the tower's input, h w of the depth map, Y X of the stored picture, C maps: the
depth and, where a sample has one, its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.adapters.pixels import frame, part
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.maps.geometry import ViewGeometry


@dataclass(frozen=True)
class View:
    """A sample as the tower sees it, before normalisation.

    Attributes:
        rgb_3HW: float32 in 0..1, at the tower's input size.
        depth_1hw: float32 in the sample's units, 0 = invalid; covers the same view in its own size.
        intrinsics: In pixels of ``rgb_3HW``; None where not known.
        aspect: Width over height that a square of the stored picture has in ``rgb_3HW``.
        weight_1hw: uint8, the sample's weight where ``depth_1hw`` is from; None where it has none.
    """

    rgb_3HW: Tensor
    depth_1hw: Tensor
    intrinsics: Intrinsics | None
    aspect: float
    weight_1hw: Tensor | None = None


def make_view(
    sample: Sample,
    preprocessing: Preprocessing,
    output_size: tuple[int, int],
    which: float = 0.0,
) -> View:
    """Prepares a sample as ``frame`` prepares its picture. What padding adds has no depth.

    Where the host makes several views of it ``which``, from 0 to 1, says the one to take.

    Depth is never averaged. Each pixel of the map takes the nearest stored pixel; where that is
    invalid, it takes the valid one nearest to its middle among the stored pixels that it covers.
    So sparse truth thins out only where several measurements fall on one pixel.
    """
    if preprocessing.makes_own_sizes:
        views = preprocessing.views((sample.image_3HW.shape[1], sample.image_3HW.shape[2])).views
        geometry = views[int(which * len(views))]
        rgb_3HW = part(sample.picture, geometry, preprocessing)
    else:
        rgb_3HW, geometry = frame(sample.picture, preprocessing)
    maps = [sample.depth_1HW, *([] if sample.weight_1HW is None else [sample.weight_1HW])]
    maps_CYX = np.concatenate([one_1YX.numpy().astype(np.float32, copy=False) for one_1YX in maps])
    depth_1hw, *weights = torch.from_numpy(resize_depth(maps_CYX, geometry, output_size)).split(1)
    camera = None if sample.intrinsics is None else geometry.intrinsics(sample.intrinsics)
    aspect = geometry.scale[1] / geometry.scale[0]
    weight_1hw = weights[0].to(torch.uint8) if weights else None
    return View(rgb_3HW, depth_1hw, camera, aspect, weight_1hw)


def resize_depth(
    maps_CYX: NDArray[np.float32], geometry: ViewGeometry, size: tuple[int, int]
) -> NDArray[np.float32]:
    """A depth map (1, h, w) of the view; see ``make_view`` for the rule.

    Maps behind the first are taken at the pixels that the depth is taken at: (C, h, w).
    """
    rows_h = _nearest(geometry, 0, size[0])
    columns_w = _nearest(geometry, 1, size[1])
    maps_Chw = maps_CYX[:, np.maximum(rows_h, 0)[:, None], np.maximum(columns_w, 0)[None]]
    maps_Chw[:, rows_h < 0] = 0.0
    maps_Chw[:, :, columns_w < 0] = 0.0
    if not maps_Chw[0].all():
        _fill_from_covered(maps_Chw, maps_CYX, geometry)
    return maps_Chw


def _nearest(geometry: ViewGeometry, axis: int, count: int) -> NDArray[np.intp]:
    """For each of ``count`` map pixels the stored pixel at its middle; -1 outside the picture."""
    edges = (np.arange(count) + 0.5) * (geometry.view_size[axis] / count)
    stored: NDArray[np.intp] = np.floor(
        (edges - geometry.offset[axis]) / geometry.scale[axis]
    ).astype(np.intp)
    stored[(stored < 0) | (stored >= geometry.image_size[axis])] = -1
    return stored


def _map_place(geometry: ViewGeometry, axis: int, count: int) -> NDArray[np.float64]:
    """For each stored pixel its middle in map pixels, counted from the map's edge."""
    middles = (np.arange(geometry.image_size[axis]) + 0.5) * geometry.scale[axis]
    place = (middles + geometry.offset[axis]) * (count / geometry.view_size[axis])
    return np.asarray(place, dtype=np.float64)


def _fill_from_covered(
    maps_Chw: NDArray[np.float32], maps_CYX: NDArray[np.float32], geometry: ViewGeometry
) -> None:
    """Gives invalid map pixels the valid stored depth nearest to their middle that they cover."""
    depth_hw, depth_YX = maps_Chw[0], maps_CYX[0]
    y_Y, x_X = (_map_place(geometry, axis, depth_hw.shape[axis]) for axis in (0, 1))
    inside_Y, inside_X = (
        (place >= 0) & (place < depth_hw.shape[axis]) for axis, place in enumerate((y_Y, x_X))
    )
    row_Y = np.where(inside_Y, y_Y, 0).astype(np.intp)
    column_X = np.where(inside_X, x_X, 0).astype(np.intp)
    wanted_YX = (depth_hw == 0)[row_Y[:, None], column_X[None]] & (depth_YX > 0)
    ys, xs = np.nonzero(wanted_YX & inside_Y[:, None] & inside_X[None])
    if not ys.size:
        return
    rows, columns = row_Y[ys], column_X[xs]
    distance = (y_Y[ys] - rows - 0.5) ** 2 + (x_X[xs] - columns - 0.5) ** 2
    farthest_first = np.argsort(-distance, kind="stable")  # the last assignment to a pixel counts
    ys, xs = ys[farthest_first], xs[farthest_first]
    maps_Chw[:, rows[farthest_first], columns[farthest_first]] = maps_CYX[:, ys, xs]

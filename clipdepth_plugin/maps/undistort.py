"""Distorted pictures made straight: as a pinhole of the same camera would have taken them.

Axes: H W a picture's size, 2 (x, y) pixels, 3 colours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.lenses import NUMBERS, Lens

_WIDEST = 1.5
"""Radians off the axis, 86 degrees: what a pinhole could see at all."""
_PROFILE = 2048


def undistorted(
    image_HW3: NDArray[np.uint8], lens: Lens
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture as the pinhole (fx, fy, cx, cy) of its lens sees it, and where it shows something.

    Size and camera stay. What the lens did not see is black and False.
    """
    height, width, _ = image_HW3.shape
    grid_1HW2, seen_HW = _grid(lens._replace(size=None), (height, width))
    image_13HW = rearrange(torch.from_numpy(np.array(image_HW3)), "h w c -> 1 c h w").float()
    straight_13HW = F.grid_sample(image_13HW, grid_1HW2, padding_mode="border", align_corners=False)
    straight_HW3 = rearrange(straight_13HW, "1 c h w -> h w c").round().byte().numpy()
    straight_HW3[~seen_HW] = 0
    return straight_HW3, seen_HW


@lru_cache(4)
def _grid(lens: Lens, size: Size) -> tuple[Tensor, NDArray[np.bool_]]:
    """Where each pixel of the straight picture lies in the distorted one, for ``grid_sample``."""
    fx, fy, cx, cy = lens.camera
    height, width = size
    x_W = (torch.arange(width, dtype=torch.float64) - cx) / fx
    y_H = (torch.arange(height, dtype=torch.float64) - cy) / fy
    y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
    places_HW2 = distorted(torch.stack([x_HW, y_HW], -1), lens)
    share_HW2 = (places_HW2 + 0.5) / torch.tensor([width, height]) * 2 - 1
    off_HW = torch.hypot(x_HW, y_HW)
    seen_HW = (share_HW2.abs() <= 1).all(-1) & (off_HW < _fold(lens, float(off_HW.max())))
    return share_HW2[None].float(), seen_HW.numpy()


def distorted(points_K2: Tensor, lens: Lens) -> Tensor:
    """Pixels of a lens's picture, of points (x / z, y / z) in float64; by kornia."""
    fx, fy, cx, cy = lens.camera
    numbers = [*lens.distortion, *[0.0] * (NUMBERS[lens.model] - len(lens.distortion))]
    if lens.model == "fisheye":
        from kornia.geometry.camera.distortion_kannala_brandt import distort_points_kannala_brandt

        parameters_8 = points_K2.new_tensor([*lens.camera, *numbers])
        fisheye_K2: Tensor = distort_points_kannala_brandt(points_K2, parameters_8)
        return fisheye_K2
    from kornia.geometry.calibration import distort_points

    matrix_33 = points_K2.new_tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    pixels_K2 = points_K2 * points_K2.new_tensor([fx, fy]) + points_K2.new_tensor([cx, cy])
    flat_1K2 = pixels_K2.reshape(1, -1, 2)
    placed_1K2: Tensor = distort_points(flat_1K2, matrix_33[None], points_K2.new_tensor([numbers]))
    return placed_1K2.reshape(points_K2.shape)


def _fold(lens: Lens, farthest: float) -> float:
    """How far off the axis (tan) a lens's numbers mean something: beyond, they turn back."""
    widest = min(float(np.arctan(farthest)), _WIDEST)
    angles = torch.linspace(0, widest, _PROFILE, dtype=torch.float32).double()
    slopes = angles.tan()
    plain = lens._replace(camera=(1.0, 1.0, 0.0, 0.0))
    away = distorted(torch.stack([slopes, torch.zeros_like(slopes)], -1), plain)[:, 0]
    turned = torch.nonzero(away.diff() <= 0)
    limit = float(slopes[int(turned[0])]) if len(turned) else float(np.tan(_WIDEST))
    return max(limit, 1e-6)

"""Depth of a tower pass at its patches: depth, confidence and the point in the camera's frame.

The head's native map is pooled as it is: nothing is resized to the input.

Axes: B views, N patches (or merged squares of them), C depth and confidence, H W a native map's
size, (h, w) the grid, the five numbers of a token last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.arguments import Intrinsics, Size, parse_count
from clipdepth_plugin.decoders.readout import confidence_of
from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.features import Views
from clipdepth_plugin.lenses import centred
from clipdepth_plugin.maps.cameras import Cameras, Focals, view_cameras, views_themselves
from clipdepth_plugin.maps.geometry import ViewGeometry
from clipdepth_plugin.maps.placing import seen_size
from clipdepth_plugin.plugin.pass_maps import PassMaps

Merge = int | Size | Literal["host"]
"""(rows, columns) of patches that make one token, or the side of a square; ``host``: as the host's
connector merges them."""

_NEAREST = 1e-6  # metres: a ``relu`` gives 0, which has no logarithm
_NO_CAMERA = (
    "depth tokens with positions need a camera: give intrinsics=... or focal_px=..., or make them "
    "with camera=False"
)


def patch_tokens(
    one: PassMaps,
    merge: Merge = 1,
    original_sizes: Size | Sequence[Size] | None = None,
    intrinsics: Cameras | None = None,
    focal_px: Focals | None = None,
    *,
    needs_camera: bool = False,
) -> list[Tensor]:
    """The tokens (B, N, 5) of each of ``one.views``; see ``DepthPlugin.tokens``.

    Args:
        one: The pass.
        merge: As ``tokens``.
        original_sizes: As ``tokens``.
        intrinsics: As ``tokens``.
        focal_px: As ``tokens``.
        needs_camera: Whether a view without a camera is an error.
    """
    merged = _parse_merge(one, merge)
    config = one.reader.head.config
    sizes = [views.pixel_size for views in one.views for _ in range(views.count)]
    place = one.place(None, original_sizes)
    images = place if isinstance(place, list) else views_themselves(sizes)
    given = intrinsics is not None or focal_px is not None
    if given and (config.canonical_focal is not None or not config.metric):
        natives = one.native_depths(images, intrinsics, focal_px)
    else:  # such metres do not follow from the lens
        natives = one.native_depths()
    cameras: list[Intrinsics | None] = [None] * len(sizes)
    if given:
        cameras = view_cameras(images, intrinsics, focal_px, one.reader.lens)
    if config.metric and config.canonical_focal is not None:
        cameras = [
            camera or centred(config.focal_at(size) or 0.0, size)
            for camera, size in zip(cameras, sizes, strict=True)
        ]
    if needs_camera and None in cameras:
        raise HostError(_NO_CAMERA)
    geometries = [view for image in images for view in image.views]
    scales = one.log_scales() if config.confidence else [None] * len(natives)
    tokens, start = [], 0
    for native_B1HW, log_scale_B1HW, views in zip(natives, scales, one.views, strict=True):
        run = slice(start, start + views.count)
        start = run.stop
        pooled_BChw = _pooled(native_B1HW, log_scale_B1HW, views, merged, one, geometries[run])
        tokens.append(_with_points(pooled_BChw, cameras[run], one.tower.patch_size, merged))
    return tokens


def _pooled(
    native_B1HW: Tensor,
    log_scale_B1HW: Tensor | None,
    views: Views,
    merged: Size,
    one: PassMaps,
    geometries: Sequence[ViewGeometry],
) -> Tensor:
    """Mean log depth and, where there is such, mean confidence of each token's pixels.

    Of the pixels that show the picture alone; NaN where none does.
    """
    if any(side % m for side, m in zip(views.grid, merged, strict=True)):
        raise HostError(
            f"merge: a grid of {views.grid[0]} x {views.grid[1]} patches is not made of "
            f"{merged[0]} x {merged[1]}"
        )
    maps_BCHW = native_B1HW.clamp_min(_NEAREST).log()
    if log_scale_B1HW is not None:
        maps_BCHW = torch.cat([maps_BCHW, confidence_of(log_scale_B1HW)], dim=1)
    cells: Size = (native_B1HW.shape[2], native_B1HW.shape[3])
    kernel = [
        side // patches * m for side, patches, m in zip(cells, views.grid, merged, strict=True)
    ]
    seen = seen_size(views, one.tower.patch_size)
    shown = [_shown(view, seen, cells) for view in geometries]
    if all(spans == ((0, cells[0]), (0, cells[1])) for spans in shown):
        return F.avg_pool2d(maps_BCHW, kernel)
    mask_BHW = torch.zeros(len(shown), *cells)
    for mask_HW, ((top, bottom), (left, right)) in zip(mask_BHW, shown, strict=True):
        mask_HW[top:bottom, left:right] = 1.0
    mask_B1HW = mask_BHW[:, None].to(maps_BCHW)
    summed_BChw = F.avg_pool2d(maps_BCHW.masked_fill(mask_B1HW == 0, 0.0), kernel)
    return summed_BChw / F.avg_pool2d(mask_B1HW, kernel)


def _shown(view: ViewGeometry, seen: Size, cells: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """The spans of native rows and columns that show the picture alone."""
    of_patches = view if view.view_size == seen else replace(view, view_size=seen)
    return of_patches.shown(0, cells[0]), of_patches.shown(1, cells[1])


def _with_points(
    pooled_BChw: Tensor, cameras: Sequence[Intrinsics | None], patch_size: Size, merged: Size
) -> Tensor:
    """(B, N, 5): each token's point lies on the ray through its middle."""
    depth_Bhw = pooled_BChw[:, 0].exp()
    nan_Bhw = torch.full_like(depth_Bhw, torch.nan)
    confidence_Bhw = pooled_BChw[:, 1] if pooled_BChw.shape[1] > 1 else nan_Bhw
    if None in cameras and not any(cameras):
        return torch.stack([depth_Bhw, confidence_Bhw, *[nan_Bhw] * 3], dim=-1).flatten(1, 2)
    numbers = [(torch.nan,) * 4 if camera is None else camera for camera in cameras]
    camera_B4 = depth_Bhw.new_tensor(numbers)
    fx, fy, cx, cy = camera_B4[:, :, None, None].unbind(1)
    v_h, u_w = (
        (torch.arange(side, dtype=depth_Bhw.dtype, device=depth_Bhw.device) + 0.5) * (patch * m)
        - 0.5
        for side, patch, m in zip(depth_Bhw.shape[1:], patch_size, merged, strict=True)
    )
    x_Bhw = (u_w - cx) / fx * depth_Bhw
    y_Bhw = (v_h[:, None] - cy) / fy * depth_Bhw
    z_Bhw = depth_Bhw.masked_fill(fx.isnan(), torch.nan) if None in cameras else depth_Bhw
    five = [depth_Bhw, confidence_Bhw, x_Bhw, y_Bhw, z_Bhw]
    return torch.stack(five, dim=-1).flatten(1, 2)


def _parse_merge(one: PassMaps, merge: Any) -> Size:
    if isinstance(merge, str):
        if merge != "host":
            raise HostError(f"merge: {quoted(merge)}, expected a side, (rows, columns) or 'host'")
        connector = one.reader.connector(None)
        if connector.merge is None:
            raise HostError(
                f"merge: how the host's connector {connector.path} merges patches is not known; "
                "give (rows, columns)"
            )
        return connector.merge, connector.merge
    if isinstance(merge, list | tuple) and len(merge) == 2:
        return parse_count(merge[0], "merge"), parse_count(merge[1], "merge")
    side = parse_count(merge, "merge")
    return side, side

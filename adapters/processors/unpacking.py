"""What an image processor hands to a tower, as pictures again: whole views, or patches in order.

Axes: V views, N patches, H W pixels; a grid is (h, w) patches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError

Views = list[Tensor]
_NAMES = ("pixel_values", "pixel_values_images", "pixel_values_videos")
_ROWS = ("(t h w mh mw)", "(t h mh w mw)")
_PATCHES = ("(c f ph pw)", "(f c ph pw)", "(f ph pw c)")


def views_of(out: Any, processor: Any) -> Iterator[Views]:
    """The (3, H, W) views in a processor's output, once for each order that patches may have.

    Raises:
        HostError: There are neither views nor patches whose grid is said.
    """
    said: Mapping[str, Any] = {"pixel_values": out} if isinstance(out, Tensor) else out
    others = [key for key in said if key.startswith("pixel_values") and key not in _NAMES]
    if others:
        raise HostError(f"it makes more views of a picture: {', '.join(others)}")
    values = next((said[name] for name in _NAMES if said.get(name) is not None), None)
    if isinstance(values, list | tuple) and len(values) == 1:
        values = torch.as_tensor(values[0])
    grid = _first_of(said, "image_grid_thw", "video_grid_thw")
    shapes = _first_of(said, "target_sizes", "target_sizes_videos", "spatial_shapes")
    places = _first_of(said, "image_position_ids", "video_position_ids")
    if isinstance(values, Tensor) and values.numel():
        values = values.float()
        if grid is not None and len(grid) == 1:
            yield from _in_any_order(values, [int(one) for one in grid[0]], processor)
            return
        if shapes is not None and (values.ndim == 3 or _are_strips(values, processor)):
            yield _by_shapes(values, [(int(h), int(w)) for h, w in shapes], processor)
            return
        if places is not None and values.ndim == 3:
            grids = [(int(yx[1]), int(yx[0])) for yx in places.amax(dim=1) + 1]
            yield _by_shapes(values, grids, processor)
            return
        side = _side_of_crops(values, processor)
        if side is not None:
            yield _by_shapes(values, [(side, side)] * len(values), processor)
            return
        if values.ndim >= 3 and values.shape[-3] == 3:
            yield list(values.reshape(-1, *values.shape[-3:]))
            return
    raise HostError("its pixel_values are neither pictures nor patches in merge order")


def _first_of(said: Mapping[str, Any], *keys: str) -> Tensor | None:
    return next((said[key] for key in keys if isinstance(said.get(key), Tensor)), None)


def _in_any_order(values: Tensor, grid: list[int], processor: Any) -> Iterator[Views]:
    """Rows of patches of one grid (t, h, w), of some frames each."""
    t, rows, columns = grid
    patch = (
        (values.shape[1], values.shape[2]) if values.ndim == 4 and values.shape[3] == 3 else None
    )
    patch, merge = patch or _patch_of(processor), int(getattr(processor, "merge_size", None) or 1)
    whole = len(values) == t * rows * columns and rows % merge == columns % merge == 0
    frames, left = divmod(values[0].numel(), 3 * patch[0] * patch[1])
    if not whole or left or not frames:
        raise HostError("its rows of pixel_values are no patches in merge order")
    for order, inside in itertools.product(_ROWS, _PATCHES):
        views_V3HW = rearrange(
            values.flatten(1),
            f"{order} {inside} -> (t f) c (h mh ph) (w mw pw)",
            t=t, h=rows // merge, w=columns // merge, mh=merge, mw=merge,
            c=3, f=frames, ph=patch[0], pw=patch[1],
        )  # fmt: skip
        yield list(views_V3HW)


def _are_strips(values: Tensor, processor: Any) -> bool:
    """Whether pictures are as high as a patch: patches side by side (MiniCPM-V)."""
    return values.ndim == 4 and values.shape[-2:-1] == (getattr(processor, "patch_size", None),)


def _side_of_crops(values: Tensor, processor: Any) -> int | None:
    """How many patches high and wide crops (V, N, patch) are, which nothing says but N (Molmo2)."""
    patch = pair(getattr(processor, "patch_size", None))
    if patch is None or values.ndim != 3 or values.shape[2] != 3 * patch[0] * patch[1]:
        return None
    side = math.isqrt(values.shape[1])
    return side if side**2 == values.shape[1] else None


def _by_shapes(values: Tensor, grids: list[Size], processor: Any) -> Views:
    """(V, N, patch) padded behind, or strips (1, 3, patch, all patches): a grid for each view."""
    if values.ndim == 4:
        pw = _patch_of(processor)[1]
        strips = values[0].split([h * w * pw for h, w in grids], dim=-1)
        return [
            rearrange(strip, "c ph (h w pw) -> c (h ph) (w pw)", h=h, w=w)
            for strip, (h, w) in zip(strips, grids, strict=True)
        ]
    side = math.isqrt(values.shape[-1] // 3)
    if 3 * side**2 != values.shape[-1] or any(h * w > values.shape[1] for h, w in grids):
        raise HostError("its rows of pixel_values are no square patches")
    return [
        rearrange(
            patches_ND[: h * w], "(h w) (p q c) -> c (h p) (w q)", h=h, w=w, p=side, q=side, c=3
        )
        for patches_ND, (h, w) in zip(values, grids, strict=True)
    ]


def _patch_of(processor: Any) -> Size:
    patch = pair(getattr(processor, "patch_size", None))
    if patch is None:
        raise HostError("it does not say the size of its patches")
    return patch

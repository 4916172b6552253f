"""Resizes to whole patches: Qwen-VL's, SigLIP 2's NaFlex, Pixtral's and Mistral 3's.

Sizes are (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.adapters.processors.registry import Read, largest, register, sized
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule


@dataclass(frozen=True)
class SmartResize(ViewRule):
    """Qwen-VL's: both sides whole multiples of ``factor``, the area within bounds.

    ``least``: so many times ``factor`` is a side at least before the bounds are looked at: LFM2-VL
    has 1, Qwen-VL 0.
    """

    label: ClassVar[str] = "resized to whole patches"
    factor: int
    min_pixels: int
    max_pixels: int
    least: int = 0

    def views(self, image_size: Size) -> ImageViews:
        height, width = image_size
        rows, columns = (max(self.least, round(side / self.factor)) for side in image_size)
        resized = self._whole(rows, columns)
        area = resized[0] * resized[1]
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / self.factor))
            resized = self._whole(rows, max(1, math.floor(width / shrink / self.factor)))
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / self.factor)
            resized = self._whole(rows, math.ceil(width * grow / self.factor))
        return ImageViews((ViewGeometry.squashed(image_size, resized),))

    def _whole(self, rows: int, columns: int) -> Size:
        return rows * self.factor, columns * self.factor


_OPTIONS = "patch_size temporal_patch_size merge_size min_pixels max_pixels min_frames max_frames"


@register("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", options=_OPTIONS)
def _smart_resize(given: Mapping[str, Any], _: Any) -> Read:
    """Old files give ``min_pixels`` and ``max_pixels`` in place of the edges, which are areas."""
    edges = given.get("size") or {}
    factor = int(given["patch_size"]) * int(given["merge_size"])
    low = given.get("min_pixels") or edges.get("shortest_edge")
    high = given.get("max_pixels") or edges.get("longest_edge")
    if low is None or high is None:
        raise KeyError("size (shortest_edge and longest_edge)")
    return largest(SmartResize(factor, int(low), int(high)))


@dataclass(frozen=True)
class MaxPatches(ViewRule):
    """SigLIP 2's NaFlex: as large as ``max_patches`` patches allow, both sides rounded up."""

    label: ClassVar[str] = "resized to whole patches"
    patch: int
    max_patches: int

    def views(self, image_size: Size) -> ImageViews:
        # The processor's own bisection: its bounds and tolerance decide the size.
        tolerance = 1e-5
        low, high = tolerance / 10, 100.0
        while high - low >= tolerance:
            middle = (low + high) / 2
            rows, columns = self._patches(image_size, middle)
            if rows * columns <= self.max_patches:
                low = middle
            else:
                high = middle
        rows, columns = self._patches(image_size, low)
        resized = (rows * self.patch, columns * self.patch)
        return ImageViews((ViewGeometry.squashed(image_size, resized),))

    def _patches(self, image_size: Size, scale: float) -> Size:
        rows, columns = (max(1, math.ceil(side * scale / self.patch)) for side in image_size)
        return rows, columns


@register("Siglip2ImageProcessor", options="patch_size max_num_patches")
def _max_patches(given: Mapping[str, Any], _: Any) -> Read:
    return largest(MaxPatches(int(given["patch_size"]), int(given["max_num_patches"])))


@dataclass(frozen=True)
class WholePatches(ViewRule):
    """Pixtral's: shrunk to fit into ``limit``, then both sides rounded up to whole patches."""

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = True
    limit: Size
    patch: Size

    def views(self, image_size: Size) -> ImageViews:
        ratio = max(image_size[0] / self.limit[0], image_size[1] / self.limit[1])
        height, width = image_size
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        resized = (
            ((height - 1) // self.patch[0] + 1) * self.patch[0],
            ((width - 1) // self.patch[1] + 1) * self.patch[1],
        )
        return ImageViews((ViewGeometry.squashed(image_size, resized),))


@register("PixtralImageProcessor", options="patch_size")
def _whole_patches(given: Mapping[str, Any], processor: Any) -> Read:
    """Mistral 3's whole processor has the image processor round up to merged patches."""
    to = given["size"]
    longest = to.get("longest_edge") if isinstance(to, Mapping) else None
    limit = pair(int(longest)) if longest is not None else sized(given)
    patch = pair(given["patch_size"])
    whole = getattr(processor, "patch_size", None)
    if processor is not given and hasattr(processor, "image_processor") and whole is not None:
        patch = pair(int(whole) * int(getattr(processor, "spatial_merge_size", 1)))
    if limit is None or patch is None:
        raise KeyError("size or patch_size")
    if given.get("do_center_crop"):
        return Read(limit, unknown="do_center_crop=True")
    return Read(limit, view_rules=(WholePatches(limit, patch),))

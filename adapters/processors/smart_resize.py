"""Qwen-VL's resize: both sides whole multiples of a factor, the area within bounds.

Sizes are (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.registry import Read, largest, register
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


@dataclass(frozen=True)
class SmartResize:
    """Qwen-VL's: both sides whole multiples of ``factor``, the area within bounds.

    Attributes:
        factor: What both sides are multiples of.
        min_pixels: The least area.
        max_pixels: The largest.
        least: So many times ``factor`` is a side at least before the bounds are looked at: LFM2-VL
            has 1, Qwen-VL 0.
    """

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = False
    factor: int
    min_pixels: int
    max_pixels: int
    least: int = 0

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
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

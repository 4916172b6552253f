"""Gemma 3's pan and scan: an overview, then crops along the long side.

Sizes are (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.registry import Read, register, sized
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

_DEFAULTS: dict[str, Any] = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


@dataclass(frozen=True)
class PanAndScan(ViewRule):
    """Gemma 3's: the overview, then crops along the long side of a lengthy image."""

    label: ClassVar[str] = "an overview and crops"
    size: Size
    min_crop: int
    max_crops: int
    min_ratio: float

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        overview = ViewGeometry.squashed(image_size, self.size)
        along = 1 if image_size[1] >= image_size[0] else 0
        long, short = image_size[along], image_size[1 - along]
        count = min(math.floor(long / self.min_crop), math.floor(long / short + 0.5))
        count = min(self.max_crops, max(2, count))
        length = math.ceil(long / count)
        if long / short < self.min_ratio or min(length, short) < self.min_crop:
            return ImageViews((overview,))
        crops = []
        for start in range(0, length * count, length):
            end = min(start + length, long)
            corner, crop = ((0, start), (short, end - start))
            if along == 0:
                corner, crop = (start, 0), (end - start, short)
            crops.append(ViewGeometry.cropped(image_size, corner, crop, self.size))
        return ImageViews((overview, *crops))


@register("Gemma3ImageProcessor", options=f"do_pan_and_scan {' '.join(_DEFAULTS)}")
def _pan_and_scan(given: Mapping[str, Any], _: Any) -> Read:
    """Cropping is an option of the call, too, so both rules are always tried.

    Where the image processor is silent, Gemma3Processor's own defaults hold.
    """
    size = sized(given)
    values = {key: given.get(key) or default for key, default in _DEFAULTS.items()}
    crops = PanAndScan(size, *values.values())
    return Read(size, "squash", view_rules=(crops,))

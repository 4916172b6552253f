"""Crops that overlap: Molmo2's. Its video frames are squashed to one crop each.

Sizes are (H, W), grids (rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.adapters.processors.grids import grids_of
from clipdepth_plugin.adapters.processors.registry import Read, register, sized, tiles_in
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule


@dataclass(frozen=True)
class OverlappingCrops(ViewRule):
    """An overview, then crops of an image that is stretched to a grid of windows and a margin.

    Attributes:
        crop: Side of a crop.
        margin: By how much neighbours overlap; the grid's windows are what is left of a crop.
        max_crops: At most so many beside the overview.
    """

    label: ClassVar[str] = "an overview and crops that overlap"
    crop: int
    margin: int
    max_crops: int

    def views(self, image_size: Size) -> ImageViews:
        crop, window = (self.crop, self.crop), self.crop - self.margin
        rows, columns = self._grid(image_size, window)
        scale_h, scale_w = (
            (count * window + self.margin) / length
            for count, length in zip((rows, columns), image_size, strict=True)
        )
        crops = [
            ViewGeometry(image_size, crop, (scale_h, scale_w), (-y * window, -x * window))
            for y in range(rows)
            for x in range(columns)
        ]
        return ImageViews((ViewGeometry.squashed(image_size, crop), *crops))

    def _grid(self, image_size: Size, window: int) -> Size:
        """The grid that enlarges what is beside the margin least, or else shrinks it least.

        The host computes in single precision; an image that is smaller than the margin gives
        scales below 0, which it compares as any others.
        """
        grids = sorted(grids_of(self.max_crops), key=lambda grid: (math.prod(grid), grid[0]))
        sides_2 = np.array(image_size, dtype=np.float32) - np.float32(self.margin)
        with np.errstate(divide="ignore"):
            scales_G = (np.array(grids, dtype=np.float32) * window / sides_2).min(axis=1)
        if (scales_G < 1).all():
            return grids[int(scales_G.argmax())]
        return grids[int(np.where(scales_G < 1, np.float32(10e9), scales_G).argmin())]


@register("Molmo2ImageProcessor", options="max_crops overlap_margins patch_size pooling_size")
def _overlapping_crops(given: Mapping[str, Any], _: Any) -> Read:
    """Margins are of patches; a crop without whole patches or windows is none of the host's."""
    size, margins, patch = sized(given), pair(given["overlap_margins"]), int(given["patch_size"])
    if margins is None:
        raise KeyError("overlap_margins")
    margin = sum(margins) * patch
    if size[0] != size[1] or size[0] % patch or margin >= size[0]:
        return Read(size, unknown=f"size={given['size']} of patches of {patch}, margins {margins}")
    return Read(size, view_rules=(OverlappingCrops(size[0], margin, tiles_in(given, "max_crops")),))


@register("Molmo2VideoProcessor", options="patch_size pooling_size max_fps")
def _frames(given: Mapping[str, Any], _: Any) -> Read:
    return Read(sized(given), "squash")

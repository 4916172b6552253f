"""SigLIP 2's NaFlex resize: as many whole patches as the tower takes.

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
class MaxPatches:
    """SigLIP 2's NaFlex: as large as ``max_patches`` patches allow, both sides rounded up."""

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = False
    patch: int
    max_patches: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
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

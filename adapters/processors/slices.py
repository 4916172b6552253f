"""Slices: MiniCPM-V's and MiniCPM-OCR's, of images and of video frames.

Sizes are (H, W), grids (rows, columns).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import tiles_of
from clipdepth_plugin.adapters.processors.registry import Read, largest, register, tiles_in
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule


@dataclass(frozen=True)
class Slices(ViewRule):
    """An overview, then the slices of an image of more than ``side`` squared pixels.

    Each is of about ``side`` squared pixels, both sides whole multiples of ``factor``.

    Attributes:
        max_slices: At most so many beside the overview.
        enlarges: Whether images that are not sliced are enlarged to ``side``, too.
    """

    label: ClassVar[str] = "an overview and slices"
    side: int
    factor: int
    max_slices: int
    enlarges: bool = True

    def views(self, image_size: Size) -> ImageViews:
        grid = self._grid(image_size)
        whole = self._resized(image_size, enlarges=grid is None and self.enlarges)
        overview = ViewGeometry.squashed(image_size, whole)
        if grid is None:
            return ImageViews((overview,))
        # The slices' shape is that of parts of the image, whose sides a grid divides.
        part_h, part_w = (
            _nearest_multiple(length, count) / count
            for length, count in zip(image_size, grid, strict=True)
        )
        tile = self._resized((part_h, part_w), enlarges=True)
        canvas = (tile[0] * grid[0], tile[1] * grid[1])
        return ImageViews((overview, *tiles_of(image_size, tile, canvas, canvas)))

    def _grid(self, image_size: Size) -> Size | None:
        """The nearest in shape of about as many slices as the image's area needs."""
        height, width = image_size
        count = min(math.ceil(width * height / (self.side * self.side)), self.max_slices)
        if count <= 1:
            return None
        shape = math.log(width / height)
        grids = [
            (rows, slices // rows)
            for slices in (count - 1, count, count + 1)
            if 1 < slices <= self.max_slices
            for rows in range(1, slices + 1)
            if slices % rows == 0
        ]
        # Of equally near ones that with most rows, and of these the first.
        return min(grids, key=lambda grid: (abs(shape - math.log(grid[1] / grid[0])), -grid[0]))

    def _resized(self, size: tuple[float, float], *, enlarges: bool) -> Size:
        height, width = size
        if height * width > self.side * self.side or enlarges:
            aspect = width / height
            height = int(self.side / math.sqrt(aspect))
            width = int(height * aspect)
        return _nearest_multiple(height, self.factor), _nearest_multiple(width, self.factor)


@dataclass(frozen=True)
class Unsliced(Slices):
    """The overview alone, of any image."""

    label: ClassVar[str] = "whole, without slices"

    def _grid(self, image_size: Size) -> Size | None:
        return None


@register(
    "MiniCPMV4_6ImageProcessor",
    "MiniCPMV4_6VideoProcessor",
    "MiniCPMOcrImageProcessor",
    "MiniCPMOcrVideoProcessor",
    options="max_slice_nums scale_resolution patch_size slice_mode downsample_mode use_image_id "
    "small_image_upsize max_num_frames stack_frames",
)
def _slices(given: Mapping[str, Any], _: Any) -> Read:
    """Slicing is an option of the call, too, so both rules are always tried."""
    # The tower and what follows it merge patches once by 2 x 2, or twice.
    factor = int(given["patch_size"]) * (2 if given["downsample_mode"] == "4x" else 4)
    enlarges = given.get("small_image_upsize", "always")
    rule = Slices(
        int(given["scale_resolution"]),
        factor,
        tiles_in(given, "max_slice_nums"),
        enlarges == "always",
    )
    whole = Unsliced(*dataclasses.astuple(rule))
    read = dataclasses.replace(largest(whole), view_rules=(rule, whole))
    if enlarges not in ("always", "never"):  # by the letters that it finds in an image
        return Read(read.size, unknown=f"small_image_upsize={enlarges!r}")
    if int(given.get("stack_frames") or 1) > 1:  # frames side by side in one picture
        return Read(read.size, unknown=f"stack_frames={given['stack_frames']}")
    return read


def _nearest_multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)

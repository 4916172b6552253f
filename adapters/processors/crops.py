"""Crops: Idefics 2's quarters, tiles of Idefics 3 and its kin, Gemma 3's pan and scan.

Sizes are (H, W).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import check_number, grid_of
from clipdepth_plugin.adapters.processors.registry import Read, register, sized, tiles_in
from clipdepth_plugin.arguments import Size, parse_count
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

# Idefics 3 never makes an image larger, whatever its settings.
_IDEFICS3_LIMIT = 4096


@dataclass(frozen=True)
class Quarters(ViewRule):
    """Idefics 2's: the image resized between bounds, where ``split`` after its four quarters."""

    label: ClassVar[str] = "between a shortest and a longest edge"
    pads_behind: ClassVar[bool] = True
    shortest: int
    longest: int
    split: bool

    def views(self, image_size: Size) -> ImageViews:
        height, width = image_size
        whole = self._view(image_size, (0, 0), image_size)
        if not self.split:
            return ImageViews((whole,))
        rows = ((0, height // 2), (height // 2, height))
        columns = ((0, width // 2), (width // 2, width))
        quarters = [
            self._view(image_size, (top, left), (bottom - top, right - left))
            for (top, bottom), (left, right) in itertools.product(rows, columns)
        ]
        return ImageViews((*quarters, whole), overview=len(quarters))

    def _view(self, image_size: Size, corner: Size, crop: Size) -> ViewGeometry:
        height, width = _bounded(crop, self.longest, least=self.shortest)
        return ViewGeometry.cropped(image_size, corner, crop, (height, width))


@dataclass(frozen=True)
class LongestSideGrid(ViewRule):
    """Idefics 3's, SmolVLM's: the long side to ``longest``, both up to tiles; the overview last.

    ``max_tiles``: UltraVBert's lowers ``longest`` by tiles until there are so few.
    """

    label: ClassVar[str] = "a grid of tiles and an overview"
    tile: int
    longest: int
    max_tiles: int | None = None

    def views(self, image_size: Size) -> ImageViews:
        longest = self.longest
        grid = self._grid(image_size, longest)
        while self.max_tiles and longest > self.tile and math.prod(grid) > self.max_tiles:
            longest -= self.tile
            grid = self._grid(image_size, longest)
        return grid_of(image_size, (self.tile, self.tile), grid)

    def _grid(self, image_size: Size, longest: int) -> Size:
        resized = _bounded(_long_side(image_size, longest), _IDEFICS3_LIMIT)
        aspect = resized[1] / resized[0]
        if resized[1] >= resized[0]:
            width = self._up(resized[1])
            canvas = (self._up(int(width / aspect)), width)
        else:
            height = self._up(resized[0])
            canvas = (height, self._up(int(height * aspect)))
        return canvas[0] // self.tile, canvas[1] // self.tile

    def _up(self, side: int) -> int:
        return math.ceil(side / self.tile) * self.tile


@register("Idefics2ImageProcessor", options="do_image_splitting")
def _quarters(given: Mapping[str, Any], _: Any) -> Read:
    edges = given["size"]
    if not isinstance(edges, Mapping) or not {"shortest_edge", "longest_edge"} <= edges.keys():
        size = sized(given)
        return Read(size, unknown=f"size={edges}")
    bounds = (int(edges["shortest_edge"]), int(edges["longest_edge"]))
    rules = (Quarters(*bounds, split=True), Quarters(*bounds, split=False))
    return Read((bounds[1], bounds[1]), view_rules=rules)


@register(
    "Idefics3ImageProcessor",
    "SmolVLMImageProcessor",
    "SmolVLMVideoProcessor",
    "UltraVBertImageProcessor",
    options="do_image_splitting max_image_size max_image_tiles",
)
def _longest_side_grid(given: Mapping[str, Any], _: Any) -> Read:
    """Frames of SmolVLM are never split; images are by the call, so both rules are tried."""
    tile = parse_count(given["max_image_size"]["longest_edge"], "max_image_size")
    if "video_processor_type" in given:
        return Read((tile, tile), "squash")
    most = given.get("max_image_tiles")
    longest = parse_count(given["size"]["longest_edge"], "size")
    check_number(longest // tile)
    most = None if most is None else tiles_in(given, "max_image_tiles")
    grid = LongestSideGrid(tile, longest, most)
    return Read((tile, tile), "squash", view_rules=(grid,))


def _long_side(image_size: Size, longest: int) -> Size:
    """The long side at ``longest``, the other even."""
    height, width = image_size
    aspect = width / height
    landscape = width >= height
    short = int(longest / aspect) if landscape else int(longest * aspect)
    short = max(1, short + short % 2)
    return (short, longest) if landscape else (longest, short)


def _bounded(size: Size, longest: int, least: int = 1) -> Size:
    """Shrunk to a long side of ``longest``; no side is shorter than ``least`` then."""
    height, width = size
    aspect = width / height
    if width >= height and width > longest:
        height, width = int(longest / aspect), longest
    elif height > width and height > longest:
        height, width = longest, int(longest * aspect)
    return max(height, least), max(width, least)


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
    """Cropping is an option of the call: both rules are tried. Defaults: Gemma3Processor's."""
    size = sized(given)
    values = {key: given.get(key) or default for key, default in _DEFAULTS.items()}
    crops = PanAndScan(size, *values.values())
    return Read(size, "squash", view_rules=(crops,))

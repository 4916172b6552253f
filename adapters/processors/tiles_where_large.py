"""Tiles of large images alone: LFM2-VL's.

Sizes are (H, W), grids (rows, columns).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import nearest_grid, tiles_of
from clipdepth_plugin.adapters.processors.registry import Read, largest, register, tiles_in
from clipdepth_plugin.adapters.processors.whole_patches import SmartResize
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.maps.tiling import ViewRule


@dataclass(frozen=True)
class TilesWhereLarge(ViewRule):
    """LFM2-VL's: of an image ``tolerance`` times above the bounds of ``whole`` a grid of tiles.

    Others, and the overview, are resized by ``whole``.
    """

    label: ClassVar[str] = "tiles where the image is large"
    whole: SmartResize
    patch: int
    tile: int
    min_tiles: int
    max_tiles: int
    tolerance: float
    overview: bool

    def views(self, image_size: Size) -> ImageViews:
        whole = self.whole.views(image_size)
        if not self._is_large(image_size):
            return whole
        tile = (self.tile, self.tile)
        rows, columns = nearest_grid(image_size, tile, self._grids())
        canvas = (rows * self.tile, columns * self.tile)
        tiles = tiles_of(image_size, tile, canvas, canvas)
        if len(tiles) == 1:
            return ImageViews(tuple(tiles))
        if not self.overview:
            return ImageViews(tuple(tiles), None)
        return ImageViews((*tiles, *whole.views), overview=len(tiles))

    def _is_large(self, image_size: Size) -> bool:
        factor = self.whole.factor
        area = math.prod(max(self.patch, round(side / factor) * factor) for side in image_size)
        return area > self.whole.max_pixels * self.tolerance

    def _grids(self) -> list[Size]:
        # Sorted out of a set, as the host does it: so even their order is the host's.
        sides = {
            (width, height)
            for count in range(self.min_tiles, self.max_tiles + 1)
            for width in range(1, count + 1)
            for height in range(1, count + 1)
            if self.min_tiles <= width * height <= self.max_tiles
        }
        return [(height, width) for width, height in sorted(sides, key=math.prod)]


_LFM2_OPTIONS = (
    "do_image_splitting min_tiles max_tiles tile_size use_thumbnail max_pixels_tolerance "
    "max_num_patches downsample_factor min_image_tokens max_image_tokens encoder_patch_size"
)


@register("Lfm2VlImageProcessor", options=_LFM2_OPTIONS)
def _tiles_where_large(given: Mapping[str, Any], _: Any) -> Read:
    """Splitting is an option of the call, too, so both rules are always tried."""
    patch, merged = int(given["encoder_patch_size"]), int(given["downsample_factor"])
    area = (patch * merged) ** 2
    bounds = [area * int(given[f"{end}_image_tokens"]) for end in ("min", "max")]
    whole = SmartResize(patch * merged, bounds[0], bounds[1], least=1)
    tiles = TilesWhereLarge(
        whole,
        patch,
        int(given["tile_size"]),
        int(given["min_tiles"]),
        tiles_in(given, "max_tiles"),
        float(given["max_pixels_tolerance"]),
        bool(given["use_thumbnail"]),
    )
    return dataclasses.replace(largest(whole), view_rules=(tiles, whole))

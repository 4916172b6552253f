"""Grids that an image fits into, as large as they come: PerceptionLM's.

Sizes are (H, W), grids (rows, columns).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import tiles_of
from clipdepth_plugin.adapters.processors.registry import Read, register, tiles_in
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule


@dataclass(frozen=True)
class FittingGrid(ViewRule):
    """An overview, then the tiles that the image is stretched to, however few.

    The grid is the one into which the image would go largest with its shape kept; of an image that
    no grid holds unshrunk, the nearest in shape that is less lengthy, with most tiles.
    """

    label: ClassVar[str] = "an overview and a grid of tiles"
    tile: int
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        rows, columns = self._grid(image_size)
        tile, canvas = (self.tile, self.tile), (rows * self.tile, columns * self.tile)
        overview = ViewGeometry.squashed(image_size, tile)
        return ImageViews((overview, *tiles_of(image_size, tile, canvas, canvas)))

    def _grid(self, image_size: Size) -> Size:
        height, width = image_size
        aspect = width / height
        grids = self._grids_by_shape()
        fitting = [
            (rows, columns)
            for rows, columns in itertools.chain.from_iterable(grids.values())
            if rows * self.tile >= height and columns * self.tile >= width
        ]
        if fitting:
            # The last of those that are equally good, as the host does it.
            return max(reversed(fitting), key=lambda grid: self._short_side(image_size, grid))
        if aspect >= 1:
            nearest = max(shape for shape in grids if shape <= aspect)
        else:
            nearest = min(shape for shape in grids if shape > aspect)
        return grids[nearest][0]

    def _grids_by_shape(self) -> dict[float, list[Size]]:
        """Grids by columns / rows, in the host's order; of one shape the largest first."""
        found: dict[float, list[Size]] = {}
        for count in range(self.max_tiles, 0, -1):
            for columns in range(1, count + 1):
                if count % columns == 0:
                    rows = count // columns
                    found.setdefault(columns / rows, []).append((rows, columns))
        return found

    def _short_side(self, image_size: Size, grid: Size) -> float:
        """The image's in a grid, in the host's order of operations."""
        height, width = image_size
        aspect = width / height
        scale = min(grid[1] * self.tile / width, grid[0] * self.tile / height)
        if aspect > 1:
            return math.floor(scale * width / aspect)
        return scale * height if aspect == 1 else math.floor(scale * height * aspect)


@register("PerceptionLMImageProcessor", options="vision_input_type tile_size max_num_tiles")
def _fitting_grid(given: Mapping[str, Any], _: Any) -> Read:
    tile = int(given["tile_size"])
    if given.get("vision_input_type") != "thumb+tile":
        return Read((tile, tile), "squash")
    return Read((tile, tile), view_rules=(FittingGrid(tile, tiles_in(given, "max_num_tiles")),))

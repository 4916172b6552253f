"""Mllama's tiles of a padded canvas.

Sizes are (H, W).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.registry import Read, register, sized
from clipdepth_plugin.adapters.processors.tiles import tiles_of
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews


@dataclass(frozen=True)
class PaddedTiles:
    """Mllama's: tiles of a canvas padded below and at the right; no overview.

    The blank tiles that the host sends behind them are no views.
    """

    label: ClassVar[str] = "tiles of a padded canvas"
    pads_behind: ClassVar[bool] = False
    tile: int
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        canvas = self._canvas(image_size)
        (height, width), (room_h, room_w) = image_size, canvas
        most_h = min(max(height, self.tile), room_h)
        most_w = min(max(width, self.tile), room_w)
        scale_h, scale_w = most_h / height, most_w / width
        if scale_w < scale_h:
            resized = (min(math.floor(height * scale_w) or 1, most_h), most_w)
        else:
            resized = (most_h, min(math.floor(width * scale_h) or 1, most_w))
        tiles = tiles_of(image_size, (self.tile, self.tile), resized, canvas)
        return ImageViews(tuple(tiles), None)

    def _canvas(self, image_size: Size) -> Size:
        """The canvas of least enlargement, or else of least shrinking; then the smallest."""
        counts = range(1, self.max_tiles + 1)
        canvases = [
            (rows * self.tile, columns * self.tile)
            for rows, columns in itertools.product(counts, counts)
            if rows * columns <= self.max_tiles
        ]

        def cost(canvas: Size) -> tuple[bool, float, int]:
            scale = min(canvas[0] / image_size[0], canvas[1] / image_size[1])
            shrinks = scale < 1
            return shrinks, -scale if shrinks else scale, canvas[0] * canvas[1]

        return min(canvases, key=cost)


@register("MllamaImageProcessor", options="max_image_tiles")
def _padded_tiles(given: Mapping[str, Any], _: Any) -> Read:
    size = sized(given)
    return Read(size, view_rules=(PaddedTiles(size[0], int(given["max_image_tiles"])),))

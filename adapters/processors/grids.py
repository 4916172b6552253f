"""How hosts choose the grid of tiles that they stretch an image to.

Sizes are (H, W), grids (rows, columns). Where several grids are as good, their order decides, so it
is that of the host's own image processor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from clipdepth_plugin.adapters.processors.tiles import grid_of, tiles_of
from clipdepth_plugin.adapters.processors.view_rules import SmartResize
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews

# Ovis 2: how much of an image its tiles have to show without shrinking it.
_COVERED = 0.9


@dataclass(frozen=True)
class AspectGrid:
    """InternVL's and AyaVision's (GotOcr2), and one of Ovis 2's: the grid nearest in shape."""

    label: ClassVar[str] = "a grid of tiles and an overview"
    pads_behind: ClassVar[bool] = False
    tile: Size
    min_tiles: int
    max_tiles: int
    overview_first: bool = False

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        grids = [grid for grid in _grids(self.max_tiles) if math.prod(grid) >= self.min_tiles]
        grid = _nearest(image_size, self.tile, grids)
        return grid_of(image_size, self.tile, grid, overview_first=self.overview_first)


@dataclass(frozen=True)
class CoveringGrid:
    """Ovis 2's: the fewest tiles that show nearly all of the image without shrinking it."""

    label: ClassVar[str] = "an overview and a grid of tiles"
    pads_behind: ClassVar[bool] = False
    tile: Size
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        shown = {grid: self._shown(image_size, grid) for grid in _grids(self.max_tiles)}
        enough = [grid for grid, share in shown.items() if share > _COVERED]
        if enough:
            grid = min(enough, key=lambda grid: (math.prod(grid), -shown[grid]))
        else:
            grid = min(shown, key=lambda grid: (-shown[grid], math.prod(grid)))
        return grid_of(image_size, self.tile, grid, overview_first=True)

    def _shown(self, image_size: Size, grid: Size) -> float:
        """The share of the image; the host takes rows for columns here, and nowhere else."""
        parts = _split(image_size, (grid[1], grid[0]))
        return sum(_unshrunk(part, self.tile[0]) for part in parts) / math.prod(image_size)


@dataclass(frozen=True)
class ScaleGrid:
    """Command A Vision's: the grid that enlarges the image least, or else shrinks it least."""

    label: ClassVar[str] = "a grid of tiles and an overview"
    pads_behind: ClassVar[bool] = False
    tile: Size
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        # The host takes tiles for squares here.
        scales = {
            grid: min(
                grid[1] * self.tile[0] / image_size[1], grid[0] * self.tile[0] / image_size[0]
            )
            for grid in _grids(self.max_tiles)
        }
        enlarging = [grid for grid, scale in scales.items() if scale >= 1]
        if enlarging:
            grid = min(enlarging, key=scales.__getitem__)
        else:
            grid = max(scales, key=scales.__getitem__)
        return grid_of(image_size, self.tile, grid)


@dataclass(frozen=True)
class TilesWhereLarge:
    """LFM2-VL's: whole patches; of an image far above the bounds a grid of tiles before those.

    Attributes:
        whole: How an image that is small enough is resized, and an overview.
        patch: Side of a patch.
        tile: Side of a tile.
        min_tiles: The least number of tiles.
        max_tiles: The largest.
        tolerance: How many times ``whole.max_pixels`` an image may have without tiles.
        overview: Whether there is one.
    """

    label: ClassVar[str] = "tiles where the image is large"
    pads_behind: ClassVar[bool] = False
    whole: SmartResize
    patch: int
    tile: int
    min_tiles: int
    max_tiles: int
    tolerance: float
    overview: bool

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        whole = self.whole.views(image_size)
        if not self._is_large(image_size):
            return whole
        tile = (self.tile, self.tile)
        rows, columns = _nearest(image_size, tile, self._grids())
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


def _grids(max_tiles: int) -> list[Size]:
    """All of up to so many tiles, few first, of equally many the tall first."""
    counts = range(1, max_tiles + 1)
    grids = [
        (rows, columns)
        for columns, rows in itertools.product(counts, counts)
        if rows * columns <= max_tiles
    ]
    return sorted(grids, key=math.prod)


def _nearest(image_size: Size, tile: Size, grids: Iterable[Size]) -> Size:
    """The nearest in shape; of equal ones the later, unless that is far finer than the image."""
    best, best_gap = (1, 1), math.inf
    for rows, columns in grids:
        gap = abs(image_size[1] / image_size[0] - columns / rows)
        worth = math.prod(image_size) > 0.5 * tile[0] * tile[1] * columns * rows
        if gap < best_gap or (gap == best_gap and worth):
            best, best_gap = (rows, columns), gap
    return best


def _split(size: Size, grid: Size) -> list[Size]:
    """The sizes of an image's parts; what does not divide goes to the last ones."""
    heights, widths = (
        [length // count] * (count - 1) + [length - length // count * (count - 1)]
        for length, count in zip(size, grid, strict=True)
    )
    return list(itertools.product(heights, widths))


def _unshrunk(part: Size, side: int) -> float:
    """The area of a part, its long side shrunk to ``side``: in its host's order of operations."""
    long, short = float(max(part)), float(min(part))
    if long > side:
        long, short = float(side), short / long * side
    return long * short

"""Grids of tiles that an image is stretched to: InternVL, AyaVision, Ovis 2, Command A Vision.

Sizes are (H, W), grids (rows, columns). Where several grids are as good, their order decides, so it
is that of the host's own image processor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.registry import Read, register, sized
from clipdepth_plugin.adapters.processors.tiles import grid_of
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
        grid = nearest_grid(image_size, self.tile, grids)
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


@register("GotOcr2ImageProcessor", options="crop_to_patches min_patches max_patches")
def _aspect_grid(given: Mapping[str, Any], _: Any) -> Read:
    """Processors of whole hosts switch tiles on by the call, so both rules are always tried."""
    size = sized(given)
    grid = AspectGrid(size, given.get("min_patches", 1), given.get("max_patches", 12))
    return Read(size, "squash", view_rules=(grid,))


@register(
    "Ovis2ImageProcessor",
    options="crop_to_patches min_patches max_patches use_covering_area_grid",
)
def _covering_grid(given: Mapping[str, Any], _: Any) -> Read:
    size, most = sized(given), int(given["max_patches"])
    if given.get("do_center_crop"):
        return Read(size, unknown="do_center_crop=True")
    if given.get("use_covering_area_grid", True):
        return Read(size, "squash", view_rules=(CoveringGrid(size, most),))
    grid = AspectGrid(size, int(given["min_patches"]), most, overview_first=True)
    return Read(size, "squash", view_rules=(grid,))


@register(
    "Cohere2VisionImageProcessor",
    options="crop_to_patches min_patches max_patches patch_size",
)
def _scale_grid(given: Mapping[str, Any], _: Any) -> Read:
    size = sized(given)
    return Read(size, "squash", view_rules=(ScaleGrid(size, int(given["max_patches"])),))


def _grids(max_tiles: int) -> list[Size]:
    """All of up to so many tiles, few first, of equally many the tall first."""
    counts = range(1, max_tiles + 1)
    grids = [
        (rows, columns)
        for columns, rows in itertools.product(counts, counts)
        if rows * columns <= max_tiles
    ]
    return sorted(grids, key=math.prod)


def nearest_grid(image_size: Size, tile: Size, grids: Iterable[Size]) -> Size:
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

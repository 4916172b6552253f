"""Grids of tiles an image is stretched to: InternVL, AyaVision, Ovis 2, Command A, LFM2-VL.

Sizes are (H, W), grids (rows, columns). Among equally good grids their order decides: the host's.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import grid_of, grids_of, least_scaled, tiles_of
from clipdepth_plugin.adapters.processors.registry import Read, largest, register, sized
from clipdepth_plugin.adapters.processors.whole_patches import SmartResize
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.maps.tiling import ViewRule

# Ovis 2: how much of an image its tiles have to show without shrinking it.
_COVERED = 0.9


@dataclass(frozen=True)
class AspectGrid(ViewRule):
    """InternVL's and AyaVision's (GotOcr2), and one of Ovis 2's: the grid nearest in shape."""

    label: ClassVar[str] = "a grid of tiles and an overview"
    tile: Size
    min_tiles: int
    max_tiles: int
    overview_first: bool = False

    def views(self, image_size: Size) -> ImageViews:
        grids = [grid for grid in grids_of(self.max_tiles) if math.prod(grid) >= self.min_tiles]
        grid = _nearest_grid(image_size, self.tile, grids)
        return grid_of(image_size, self.tile, grid, overview_first=self.overview_first)


@dataclass(frozen=True)
class CoveringGrid(ViewRule):
    """Ovis 2's: the fewest tiles that show nearly all of the image without shrinking it."""

    label: ClassVar[str] = "an overview and a grid of tiles"
    tile: Size
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        shown = {grid: self._shown(image_size, grid) for grid in grids_of(self.max_tiles)}
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
class ScaleGrid(ViewRule):
    """Command A Vision's: the grid that enlarges the image least, or else shrinks it least."""

    label: ClassVar[str] = "a grid of tiles and an overview"
    tile: Size
    max_tiles: int
    turned: bool = False
    """Whether it takes an image's height for its width, as transformers 4 does."""

    def views(self, image_size: Size) -> ImageViews:
        # The host takes tiles for squares here.
        taken = image_size[::-1] if self.turned else image_size
        grid = least_scaled(taken, self.tile[0], self.max_tiles)
        return grid_of(image_size, self.tile, grid)


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
        rows, columns = _nearest_grid(image_size, tile, self._grids())
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
    try:
        turned = importlib.metadata.version("transformers").startswith("4.")
    except importlib.metadata.PackageNotFoundError:
        turned = False
    grid = ScaleGrid(size, int(given["max_patches"]), turned)
    return Read(size, "squash", view_rules=(grid,))


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
        int(given["max_tiles"]),
        float(given["max_pixels_tolerance"]),
        bool(given["use_thumbnail"]),
    )
    return dataclasses.replace(largest(whole), view_rules=(tiles, whole))


def _nearest_grid(image_size: Size, tile: Size, grids: Iterable[Size]) -> Size:
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

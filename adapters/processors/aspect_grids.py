"""Grids of tiles an image is stretched to: InternVL, AyaVision, Granite-Docling, Ovis 2 ...

Sizes are (H, W), grids (rows, columns). Among equally good grids their order decides: the host's.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.processors.grids import grid_of, grids_of, least_scaled, nearest_grid
from clipdepth_plugin.adapters.processors.registry import Read, register, sized, tiles_in
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.maps.tiling import ViewRule

# Ovis 2: how much of an image its tiles have to show without shrinking it.
_COVERED = 0.9
# Granite-Docling's tokenizer has names for so many rows and columns.
_PAGE_SIDE = 16


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
        grid = nearest_grid(image_size, self.tile, grids)
        return grid_of(image_size, self.tile, grid, overview_first=self.overview_first)


@dataclass(frozen=True)
class PageGrid(ViewRule):
    """Granite-Docling's: as InternVL's, of 16 tiles a side at most; of more tiles where ``dense``.

    Attributes:
        dense_tiles: At most so many tiles has a page that is wider than ``dense_aspects[0]`` times
            its height, not than ``dense_aspects[1]`` times it, and that ``max_tiles`` would shrink
            below ``dense_scale``; a limit of 0 is none, and 0 tiles, or no limit: no page.
    """

    label: ClassVar[str] = "a grid of tiles and an overview"
    tile: Size
    min_tiles: int
    max_tiles: int
    dense_tiles: int = 0
    dense_scale: float = 0.0
    dense_aspects: tuple[float, float] = (0.0, 0.0)

    def views(self, image_size: Size) -> ImageViews:
        if self.max_tiles <= 1:
            return grid_of(image_size, self.tile, (1, 1))
        most, grid = self.max_tiles, self._grid(image_size, self.min_tiles, self.max_tiles)
        if self._is_dense(image_size, grid):
            most = self.dense_tiles
        grid = self._grid(image_size, min(self.min_tiles, most), most)
        return grid_of(image_size, self.tile, grid)

    def _grid(self, image_size: Size, least: int, most: int) -> Size:
        grids = [
            grid for grid in grids_of(most) if math.prod(grid) >= least and max(grid) <= _PAGE_SIDE
        ]
        return nearest_grid(image_size, self.tile, grids)

    def _is_dense(self, image_size: Size, grid: Size) -> bool:
        aspect, scale = image_size[1] / image_size[0], grid[1] * self.tile[1] / image_size[1]
        least, most = self.dense_aspects
        return (
            self.dense_tiles > 0
            and (self.dense_scale > 0 or least > 0)
            and (least <= 0 or aspect > least)
            and (most <= 0 or aspect <= most)
            and (self.dense_scale <= 0 or scale < self.dense_scale)
        )


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


@register("GotOcr2ImageProcessor", options="crop_to_patches min_patches max_patches")
def _aspect_grid(given: Mapping[str, Any], _: Any) -> Read:
    """Processors of whole hosts switch tiles on by the call, so both rules are always tried."""
    given = {"min_patches": 1, "max_patches": 12, **given}
    size = sized(given)
    grid = AspectGrid(size, int(given["min_patches"]), tiles_in(given, "max_patches"))
    return Read(size, "squash", view_rules=(grid,))


@register(
    "GraniteDoclingImageProcessor",
    options="crop_to_patches min_patches max_patches fine_route "
    "dense_max_patches dense_max_scale dense_min_aspect dense_max_aspect",
)
def _page_grid(given: Mapping[str, Any], _: Any) -> Read:
    size, bounds = sized(given), (int(given["min_patches"]), tiles_in(given, "max_patches"))
    least, most, scale = (
        float(given.get(f"dense_{key}") or 0) for key in ("min_aspect", "max_aspect", "max_scale")
    )
    dense_tiles = tiles_in(given, "dense_max_patches") if given.get("dense_max_patches") else 0
    grid = PageGrid(size, *bounds, dense_tiles, scale, (least, most))
    return Read(size, "squash", view_rules=(grid,))


@register(
    "Ovis2ImageProcessor",
    options="crop_to_patches min_patches max_patches use_covering_area_grid",
)
def _covering_grid(given: Mapping[str, Any], _: Any) -> Read:
    size, most = sized(given), tiles_in(given, "max_patches")
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
    grid = ScaleGrid(size, tiles_in(given, "max_patches"), turned)
    return Read(size, "squash", view_rules=(grid,))


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

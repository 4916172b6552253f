"""Grids of tiles, which view rules of several kinds share.

Sizes are (H, W), grids (rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry

_MOST = 4096


def grid_of(
    image_size: Size, tile: Size, grid: Size, *, overview_first: bool = False
) -> ImageViews:
    """The image stretched to a grid of (rows, columns) tiles, and an overview; or that alone."""
    overview = ViewGeometry.squashed(image_size, tile)
    if grid == (1, 1):
        return ImageViews((overview,))
    canvas = (grid[0] * tile[0], grid[1] * tile[1])
    tiles = tiles_of(image_size, tile, canvas, canvas)
    if overview_first:
        return ImageViews((overview, *tiles))
    return ImageViews((*tiles, overview), overview=len(tiles))


def tiles_of(
    image_size: Size, tile: Size, resized: Size, canvas: Size, corner: Size = (0, 0)
) -> list[ViewGeometry]:
    """The tiles of a canvas that holds the resized image at ``corner`` (top, left)."""
    scale = (resized[0] / image_size[0], resized[1] / image_size[1])
    check_number(math.ceil(canvas[0] / tile[0]) * math.ceil(canvas[1] / tile[1]))
    return [
        ViewGeometry(image_size, tile, scale, (corner[0] - y, corner[1] - x))
        for y in range(0, canvas[0], tile[0])
        for x in range(0, canvas[1], tile[1])
    ]


def check_number(tiles: int) -> None:
    """Refuses settings that would cut a picture into more tiles than any host does."""
    if tiles > _MOST:
        raise HostError(f"its settings cut a picture into {tiles} tiles, more than {_MOST}")


def grids_of(max_tiles: int) -> list[Size]:
    """All of up to so many tiles, few first, of equally many the tall first."""
    grids = [
        (rows, columns)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
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


def least_scaled(
    image_size: Size, tile: int, max_tiles: int, *, enlarges_most: bool = False
) -> Size:
    """The grid that enlarges the image least, or else shrinks it least; then the smallest.

    ``enlarges_most``: the one that enlarges it most.
    """

    def cost(grid: Size) -> tuple[bool, float, int]:
        scale = min(grid[0] * tile / image_size[0], grid[1] * tile / image_size[1])
        shrinks = scale < 1 and not enlarges_most
        return shrinks, -scale if shrinks or enlarges_most else scale, math.prod(grid)

    return min(grids_of(max_tiles), key=cost)

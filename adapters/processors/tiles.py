"""Tiles of a canvas that an image was resized to; shared by the processors that tile.

Sizes are (H, W); tiles go row by row.
"""

from __future__ import annotations

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


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
    return [
        ViewGeometry(image_size, tile, scale, (corner[0] - y, corner[1] - x))
        for y in range(0, canvas[0], tile[0])
        for x in range(0, canvas[1], tile[1])
    ]

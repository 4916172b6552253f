"""How hosts cut an image into tiles or crops, each of them a view, mostly beside an overview.

Sizes are (H, W); tiles go row by row.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry

# Idefics 3 never makes an image larger, whatever its settings.
_IDEFICS3_LIMIT = 4096


@dataclass(frozen=True)
class AnyRes:
    """LLaVA-NeXT's and LLaVA-OneVision's: the overview, then the tiles of a padded canvas.

    Of the canvases the one that loses least; the image keeps its shape in it, in the middle.
    """

    label: ClassVar[str] = "an overview and anyres tiles"
    pads_behind: ClassVar[bool] = False
    tile: Size
    canvases: tuple[Size, ...]

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        canvas = min(self.canvases, key=lambda canvas: _loss(image_size, canvas))
        scale_h, scale_w = canvas[0] / image_size[0], canvas[1] / image_size[1]
        if scale_w < scale_h:
            resized = (min(math.ceil(image_size[0] * scale_w), canvas[0]), canvas[1])
        else:
            resized = (canvas[0], min(math.ceil(image_size[1] * scale_h), canvas[1]))
        # The odd pixel of the padding goes behind.
        corner = ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)
        overview = ViewGeometry.squashed(image_size, self.tile)
        return ImageViews((overview, *tiles_of(image_size, self.tile, resized, canvas, corner)))


@dataclass(frozen=True)
class LongestSideGrid:
    """Idefics 3's and SmolVLM's: the long side to ``longest``, all to whole tiles, overview last.

    The shape is not quite kept, as both sides are rounded up to tiles.
    """

    label: ClassVar[str] = "a grid of tiles and an overview"
    pads_behind: ClassVar[bool] = False
    tile: int
    longest: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        resized = _bounded(_long_side(image_size, self.longest), _IDEFICS3_LIMIT)
        aspect = resized[1] / resized[0]
        if resized[1] >= resized[0]:
            width = self._up(resized[1])
            canvas = (self._up(int(width / aspect)), width)
        else:
            height = self._up(resized[0])
            canvas = (height, self._up(int(height * aspect)))
        tile = (self.tile, self.tile)
        return grid_of(image_size, tile, (canvas[0] // self.tile, canvas[1] // self.tile))

    def _up(self, side: int) -> int:
        return math.ceil(side / self.tile) * self.tile


@dataclass(frozen=True)
class Quarters:
    """Idefics 2's: the image resized between bounds, where ``split`` after its four quarters."""

    label: ClassVar[str] = "between a shortest and a longest edge"
    pads_behind: ClassVar[bool] = True
    shortest: int
    longest: int
    split: bool

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
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
class PanAndScan:
    """Gemma 3's: the overview, then crops along the long side of a lengthy image."""

    label: ClassVar[str] = "an overview and crops"
    pads_behind: ClassVar[bool] = False
    size: Size
    min_crop: int
    max_crops: int
    min_ratio: float

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
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


def _loss(image_size: Size, canvas: Size) -> tuple[int, int]:
    """How little a canvas keeps of the image's pixels, then how much of it is wasted."""
    scale = min(canvas[1] / image_size[1], canvas[0] / image_size[0])
    kept = int(image_size[1] * scale) * int(image_size[0] * scale)
    kept = min(kept, image_size[0] * image_size[1])
    return -kept, canvas[0] * canvas[1] - kept


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

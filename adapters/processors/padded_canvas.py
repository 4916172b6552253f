"""Tiles of a padded canvas: LLaVA-NeXT's and LLaVA-OneVision's anyres, Mllama's, Llama 4's.

Sizes are (H, W).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.adapters.processors.grids import check_number, least_scaled, tiles_of
from clipdepth_plugin.adapters.processors.registry import Read, register, sized, tiles_in
from clipdepth_plugin.adapters.processors.whole import PadToSquare, ShortestSide, Squash
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import BLACK, RGB, ViewRule


@dataclass(frozen=True)
class AnyRes(ViewRule):
    """LLaVA-NeXT's: an overview; tiles of the canvas that loses least, the image in its middle.

    Attributes:
        tile: What the tower takes.
        canvases: To choose from.
        piece: Side of the squares into which a canvas is cut, from above and the left; what is left
            at its end are rectangles. Pieces are made to tiles as images are by ``resize``.
        resize: ``Squash`` or ``ShortestSide`` to a tile.
    """

    label: ClassVar[str] = "an overview and anyres tiles"
    padding: ClassVar[RGB | None] = BLACK
    tile: Size
    canvases: tuple[Size, ...]
    piece: int
    resize: ViewRule

    def views(self, image_size: Size) -> ImageViews:
        canvas = min(self.canvases, key=lambda canvas: _loss(image_size, canvas))
        scale_h, scale_w = canvas[0] / image_size[0], canvas[1] / image_size[1]
        if scale_w < scale_h:
            resized = (min(math.ceil(image_size[0] * scale_w), canvas[0]), canvas[1])
        else:
            resized = (canvas[0], min(math.ceil(image_size[1] * scale_h), canvas[1]))
        # The odd pixel of the padding goes behind.
        corner = ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)
        on_canvas = ViewGeometry(
            image_size, canvas, (resized[0] / image_size[0], resized[1] / image_size[1]), corner
        )
        check_number(math.prod(math.ceil(side / self.piece) for side in canvas))
        tiles = [
            self._tile(on_canvas, (top, left))
            for top in range(0, canvas[0], self.piece)
            for left in range(0, canvas[1], self.piece)
        ]
        return ImageViews((ViewGeometry.squashed(image_size, self.tile), *tiles))

    def _tile(self, on_canvas: ViewGeometry, start: Size) -> ViewGeometry:
        """The piece of a canvas that starts there, as the tower takes it."""
        height, width = (
            min(self.piece, end - first)
            for end, first in zip(on_canvas.view_size, start, strict=True)
        )
        (tile,) = self.resize.views((height, width)).views
        scale_h, scale_w = (a * b for a, b in zip(on_canvas.scale, tile.scale, strict=True))
        top, left = (
            (at - first) * scale + shift
            for at, first, scale, shift in zip(
                on_canvas.offset, start, tile.scale, tile.offset, strict=True
            )
        )
        return ViewGeometry(on_canvas.image_size, self.tile, (scale_h, scale_w), (top, left))


@register("LlavaNextImageProcessor", options="image_grid_pinpoints")
def _anyres(given: Mapping[str, Any], _: Any) -> Read:
    """Known where the overview is not cropped, and all pieces become tiles of one size."""
    crop = pair(given.get("crop_size"))
    crops = given.get("do_center_crop") is not False
    to = given["size"]
    shortest = to.get("shortest_edge") if isinstance(to, Mapping) else None
    tile = pair(to) if shortest is None else pair(int(shortest))
    canvases = tuple((int(height), int(width)) for height, width in given["image_grid_pinpoints"])
    if tile is None:
        raise KeyError("size or crop_size")
    piece = (crop or tile)[0]
    whole = all(side % piece == 0 for canvas in canvases for side in canvas)
    if (crops and crop not in (None, tile)) or (shortest is not None and not (crops or whole)):
        return Read(tile, unknown=f"size={to}, crop_size={crop} and canvases {canvases[:3]} ...")
    resize = Squash(tile) if shortest is None else ShortestSide(tile, int(shortest), "down")
    return Read(tile, view_rules=(AnyRes(tile, canvases, piece, resize),))


@register("LlavaOnevisionImageProcessor", options="image_grid_pinpoints")
def _anyres_or_square(given: Mapping[str, Any], processor: Any) -> Read:
    """LLaVA-OneVision tiles an image that is alone in its prompt, and pads those that are not."""
    read = _anyres({**given, "do_center_crop": False}, processor)
    if given.get("do_center_crop") or not read.view_rules:
        return Read(read.size, unknown=read.unknown or "do_center_crop=True")
    return dataclasses.replace(read, view_rules=(*read.view_rules, PadToSquare(read.size)))


def _loss(image_size: Size, canvas: Size) -> tuple[int, int]:
    """How little a canvas keeps of the image's pixels, then how much of it is wasted."""
    scale = min(canvas[1] / image_size[1], canvas[0] / image_size[0])
    kept = int(image_size[1] * scale) * int(image_size[0] * scale)
    kept = min(kept, image_size[0] * image_size[1])
    return -kept, canvas[0] * canvas[1] - kept


@dataclass(frozen=True)
class PaddedTiles(ViewRule):
    """Mllama's: tiles of a canvas padded below and right; the blank ones behind are no views."""

    label: ClassVar[str] = "tiles of a padded canvas"
    padding: ClassVar[RGB | None] = BLACK
    tile: int
    max_tiles: int

    def views(self, image_size: Size) -> ImageViews:
        rows, columns = least_scaled(image_size, self.tile, self.max_tiles)
        canvas = (rows * self.tile, columns * self.tile)
        resized = _fitted(image_size, _enlarged_to_a_tile(image_size, canvas, self.tile))
        tiles = tiles_of(image_size, (self.tile, self.tile), resized, canvas)
        return ImageViews(tuple(tiles), None)


@register("MllamaImageProcessor", options="max_image_tiles")
def _padded_tiles(given: Mapping[str, Any], _: Any) -> Read:
    size = sized(given)
    return Read(size, view_rules=(PaddedTiles(size[0], tiles_in(given, "max_image_tiles")),))


@dataclass(frozen=True)
class PaddedTilesAndOverview(ViewRule):
    """Llama 4's: as Mllama's, and an overview behind; ``fills``: images are enlarged to a canvas.

    A tile that is alone is padded, and has no overview.
    """

    label: ClassVar[str] = "tiles of a padded canvas and an overview"
    padding: ClassVar[RGB | None] = BLACK
    tile: int
    max_tiles: int
    fills: bool

    def views(self, image_size: Size) -> ImageViews:
        tile = (self.tile, self.tile)
        rows, columns = least_scaled(
            image_size, self.tile, self.max_tiles, enlarges_most=self.fills
        )
        canvas = (rows * self.tile, columns * self.tile)
        room = canvas
        if not self.fills:
            room = _enlarged_to_a_tile(image_size, canvas, self.tile)
        # Where the canvas limits a side the host divides by tensors: in single precision.
        single = [
            self.fills or max(side, self.tile) > most
            for side, most in zip(image_size, canvas, strict=True)
        ]
        tiles = tiles_of(image_size, tile, _fitted(image_size, room, single), canvas)
        if len(tiles) == 1:
            return ImageViews(tuple(tiles))
        overview = ViewGeometry.squashed(image_size, tile)
        return ImageViews((*tiles, overview), overview=len(tiles))


@register("Llama4ImageProcessor", options="max_patches resize_to_max_canvas")
def _padded_tiles_and_overview(given: Mapping[str, Any], _: Any) -> Read:
    size, fills = sized(given), bool(given.get("resize_to_max_canvas"))
    if size[0] != size[1]:
        return Read(size, unknown=f"size={given['size']}, of which the host makes squares")
    return Read(
        size, view_rules=(PaddedTilesAndOverview(size[0], tiles_in(given, "max_patches"), fills),)
    )


def _enlarged_to_a_tile(image_size: Size, canvas: Size, tile: int) -> Size:
    """The part of a canvas for the image, which is never enlarged beyond one tile."""
    height, width = (
        min(max(side, tile), most) for side, most in zip(image_size, canvas, strict=True)
    )
    return height, width


def _fitted(image_size: Size, room: Size, single: Sequence[bool] = (False, False)) -> Size:
    """The image's size in a room, its shape kept, rounded down; ``single``: float32 for a side."""
    kinds = [np.float32 if one else np.float64 for one in single]
    scale_h, scale_w = (
        kind(most) / kind(side) for kind, most, side in zip(kinds, room, image_size, strict=True)
    )
    if scale_w < scale_h:
        return min(math.floor(kinds[1](image_size[0]) * scale_w) or 1, room[0]), room[1]
    return room[0], min(math.floor(kinds[0](image_size[1]) * scale_h) or 1, room[1])

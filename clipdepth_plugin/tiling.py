"""Where the views lie that a host cuts an image into: the whole of it first, then its tiles.

LLaVA-NeXT's anyres tiling (transformers' LlavaNextImageProcessor): of the resolutions that the
host allows, the one that loses least; the image is resized into it with its shape kept, padded in
the middle, and cut into tiles, row by row.
"""

from __future__ import annotations

import math
from dataclasses import replace

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.geometry import ViewGeometry

Size = tuple[int, int]


def views_of(image_size: Size, preprocessing: Preprocessing) -> list[ViewGeometry]:
    """The views of one image, in the order in which the tower sees them.

    Args:
        image_size: (H, W) of the user's image.
        preprocessing: The host's.

    Returns:
        One view, or where the host tiles: the overview, then the tiles.

    Raises:
        HostError: It is not known how the host resizes.
    """
    if not preprocessing.tilings:
        return [ViewGeometry.of(image_size, preprocessing)]
    overview = ViewGeometry.of(image_size, replace(preprocessing, resize="squash"))
    tile_h, tile_w = view = preprocessing.size
    canvas_h, canvas_w = canvas = _best_fit(image_size, preprocessing.tilings)
    resized_h, resized_w = _resized(image_size, canvas)
    scale = (resized_h / image_size[0], resized_w / image_size[1])
    # The odd pixel of the padding goes behind.
    top, left = (canvas_h - resized_h) // 2, (canvas_w - resized_w) // 2
    return [
        overview,
        *(
            ViewGeometry(image_size, view, scale, (top - y, left - x))
            for y in range(0, canvas_h, tile_h)
            for x in range(0, canvas_w, tile_w)
        ),
    ]


def _best_fit(image_size: Size, canvases: tuple[Size, ...]) -> Size:
    """The canvas that keeps most of the image's pixels; of equal ones the smallest, then first."""

    def loss(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[1] / image_size[1], canvas[0] / image_size[0])
        kept = int(image_size[1] * scale) * int(image_size[0] * scale)
        kept = min(kept, image_size[0] * image_size[1])
        return -kept, canvas[0] * canvas[1] - kept

    return min(canvases, key=loss)


def _resized(image_size: Size, canvas: Size) -> Size:
    """The image's size inside the canvas: one side fits, the other is rounded up."""
    scale_h, scale_w = canvas[0] / image_size[0], canvas[1] / image_size[1]
    if scale_w < scale_h:
        return min(math.ceil(image_size[0] * scale_w), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(image_size[1] * scale_h), canvas[1])

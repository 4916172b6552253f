"""Depth in colours without matplotlib: for videos, notebooks and textures.

The colours are matplotlib's ``turbo``; `colours.py` draws image grids with bars of them.
Axes: H W pixels of a map, 3 red, green, blue.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.files.colours import Ends, ends_of
from clipdepth_plugin.files.depth_maps import DepthMap, one_map

_ANCHORS = np.frombuffer(
    bytes.fromhex(
        "30123b392a734040a24456c7466be34680f64294ff37a8fa28bceb1ccdd818ddc21fe9af32f2984ef97d"
        "6dfe628bff4ba4fc3cb9f635cdec34dfdf37eecf3af8be39fdac34fe962bfb7e21f46617eb500edf3f08"
        "d02f05be2102a91601920b017a0403"
    ),
    np.uint8,
).reshape(-1, 3)
"""Of ``turbo``, equally spaced; linear between them, which is off by 3 of 255 at most."""
_STEPS = np.linspace(0, len(_ANCHORS) - 1, 256)
_TABLE = np.stack(
    [np.rint(np.interp(_STEPS, np.arange(len(_ANCHORS)), one)) for one in _ANCHORS.T], axis=1
).astype(np.uint8)
_NO_DEPTH = 128
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def colourise(
    depth: DepthMap, low: float | None = None, high: float | None = None, *, inverse: bool = False
) -> NDArray[np.uint8]:
    """A depth map in colours: near is red, far is blue, no depth (NaN, not above 0) is grey.

    Args:
        depth: (H, W), or (1, H, W) as a plug-in gives it, in metres; a tensor or an array.
        low: Metres at the red end; None: the map's 1st percentile.
        high: Metres at the blue end; None: the map's 99th percentile.
        inverse: The map is relative inverse depth, of which larger is nearer.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DepthFileError: Not one map, or ``low`` is not below ``high``.
    """
    map_HW = one_map(depth, "depth").astype(np.float64)
    found = ends_of(map_HW)
    ends = Ends(found.low if low is None else low, found.high if high is None else high)
    if not ends.low < ends.high:
        raise DepthFileError(f"colours from {ends.low:g} to {ends.high:g}: low is not below high")
    valid_HW = np.isfinite(map_HW) & (map_HW > 0)
    share_HW = (np.where(valid_HW, map_HW, ends.low) - ends.low) / (ends.high - ends.low)
    index_HW = np.rint(share_HW.clip(0, 1) * 255).astype(np.uint8)
    colours_HW3: NDArray[np.uint8] = _TABLE[index_HW if inverse else 255 - index_HW]
    colours_HW3[~valid_HW] = _NO_DEPTH
    return colours_HW3


def beside(
    image_HW3: NDArray[np.uint8] | None,
    depth: DepthMap,
    ends: Ends | None = None,
    *,
    inverse: bool = False,
) -> NDArray[np.uint8]:
    """A picture, its depth in colours and a bar that reads metres, side by side.

    Args:
        image_HW3: The picture, of the map's size; None: the map alone.
        depth: As ``colourise`` takes it.
        ends: Of the colours; None: the map's own.
        inverse: As ``colourise`` takes it; the bar has no metres then.

    Returns:
        (H', W', 3) uint8 RGB with H' >= H, whose size depends on H and W alone.
    """
    map_HW = one_map(depth, "depth")
    ends = ends_of(map_HW.astype(np.float64)) if ends is None else ends
    parts = [colourise(map_HW, *ends, inverse=inverse)]
    if image_HW3 is not None:
        parts.insert(0, image_HW3)
    height = max(map_HW.shape[0], 48)
    parts = [np.pad(one, ((0, height - one.shape[0]), (0, 0), (0, 0))) for one in parts]
    return np.concatenate([*parts, _bar(height, ends, inverse=inverse)], axis=1)


def _bar(height: int, ends: Ends, *, inverse: bool) -> NDArray[np.uint8]:
    """Near is at the top, and what is there is red."""
    font_size = min(max(height // 20, 9), 40)
    font = ImageFont.load_default(font_size)
    bar_width = font_size
    width = bar_width + 4 * font_size
    share_H = np.linspace(0, 1, height)
    picture = Image.new("RGB", (width, height), _BLACK)
    strip_HW3 = np.repeat(_TABLE[np.rint(255 * (1 - share_H)).astype(int)][:, None], bar_width, 1)
    picture.paste(Image.fromarray(strip_HW3), (0, 0))
    draw = ImageDraw.Draw(picture)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if height >= 8 * font_size else (0.0, 1.0):
        value = ends.low + share * (ends.high - ends.low)
        text = f"{value:.3g} m"
        if inverse:
            text = {0.0: "near", 1.0: "far"}.get(share, "")
        middle = min(max(share * height, 0.7 * font_size), height - 0.7 * font_size)
        draw.text((bar_width + font_size / 4, middle), text, _WHITE, font, anchor="lm")
    return np.asarray(picture)

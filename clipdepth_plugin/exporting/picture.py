"""The picture of an exported folder: a floor, a wall and three balls, the same on any machine.

Axes: H W pixels, C colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (240, 320)
_BALLS = ((0.30, 0.62, 0.16, (210, 70, 50)), (0.62, 0.70, 0.22, (60, 120, 200)),
          (0.80, 0.52, 0.09, (230, 200, 60)))  # fmt: skip


def check_picture() -> Image.Image:
    """RGB, 240 x 320."""
    height, width = SIZE
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float64)
    y_HW, x_HW = (y_HW + 0.5) / height, (x_HW + 0.5) / height
    wall_HWC = np.stack([150 + 60 * y_HW, 160 + 30 * x_HW, 190 - 50 * y_HW], axis=-1)
    below_HW = np.maximum(y_HW - 0.45, 1e-3)
    tile_HW = (np.floor(0.4 / below_HW) + np.floor((x_HW - 0.66) / below_HW * 0.6)) % 2
    floor_HWC = np.stack([90 + 50 * tile_HW, 80 + 45 * tile_HW, 70 + 40 * tile_HW], axis=-1)
    image_HWC = np.where((y_HW < 0.45)[..., None], wall_HWC, floor_HWC)
    for left, top, radius, colour in _BALLS:
        away_HW = np.hypot(x_HW - left * width / height, y_HW - top) / radius
        light_HW = np.sqrt(np.maximum(1 - away_HW**2, 0.0)) * 0.7 + 0.3
        ball_HWC: NDArray[np.float64] = light_HW[..., None] * np.array(colour)
        image_HWC = np.where((away_HW < 1)[..., None], ball_HWC, image_HWC)
    return Image.fromarray(np.clip(np.rint(image_HWC), 0, 255).astype(np.uint8))

"""Depth maps that ``clipdepth predict`` wrote, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read_depth_png(path: Path) -> NDArray[np.float32]:
    """(H, W) metres, NaN where the file has 0."""
    with Image.open(path) as image:
        assert image.mode == "I;16"
        millimetres_HW = np.asarray(image)
    metres_HW = millimetres_HW.astype(np.float32) / np.float32(1000)
    return np.where(millimetres_HW > 0, metres_HW, np.float32(np.nan))

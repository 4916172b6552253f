"""Middlebury 2014's motorcycle, as scikit-image's wheel has it: a picture with its true depth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from clipdepth_plugin.files.pictures import load_image

FOCAL_PX, CENTRE = 994.978, (311.193, 254.877)
"""As published, in pixels of this picture."""

_DOFFS_PX, _BASELINE_M = 31.086, 0.193001


def skimage_data() -> Path:
    """The folder of pictures inside scikit-image's wheel."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit('the demo needs scikit-image: pip install "clipdepth-plugin[demo]"')
    return Path(spec.origin).parent / "data"


def load(data: Path) -> tuple[Image, NDArray[np.float64]]:
    """The picture and its (500, 741) depth in metres, NaN where the scene was not measured.

    The wheel has Middlebury's picture and disparity at a quarter of the published size, and
    scikit-image gives the calibration of that size (``stereo_motorcycle``), so all numbers fit
    together as they are: depth = focal * baseline / (disparity + doffs).
    """
    with np.load(data / "motorcycle_disp.npz") as file:
        disparity_HW = file["arr_0"].astype(np.float64)
    depth_HW = FOCAL_PX * _BASELINE_M / (disparity_HW + _DOFFS_PX)
    depth_HW[~np.isfinite(disparity_HW)] = np.nan
    return load_image(data / "motorcycle_left.png"), depth_HW

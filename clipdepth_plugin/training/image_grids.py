"""Image grids: RGB, truth, prediction and error of some samples.

Axes: P samples (rows), H W pixels of each picture, C colours.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEPTH_COLOURS = "turbo_r"
_ERROR_COLOURS = "magma"
_WORST_ERROR = 0.5
_GREY = 128
_GAP = 2


def image_grid(rgb_P3HW: Tensor, truth_P1HW: Tensor, pred_P1HW: Tensor) -> NDArray[np.uint8]:
    """Draws one row for each sample: RGB | truth | prediction | relative error.

    Truth and prediction share a scale of log depth, from the 1st to the 99th percentile of the
    truth (near is red); the error runs from 0 (black) to 50 % (white); no truth is grey.

    Args:
        rgb_P3HW: uint8.
        truth_P1HW: Metres; 0 = invalid.
        pred_P1HW: Metres.

    Returns:
        (rows, columns, 3) uint8.
    """
    rows = [
        _row(rgb.permute(1, 2, 0).numpy(), truth[0].float().numpy(), pred[0].float().numpy())
        for rgb, truth, pred in zip(rgb_P3HW, truth_P1HW, pred_P1HW, strict=True)
    ]
    return np.concatenate(rows, axis=0)


def png_bytes(grid_HWC: NDArray[np.uint8]) -> bytes:
    """A picture (rows, columns, 3) uint8 as a PNG file's content."""
    content = io.BytesIO()
    Image.fromarray(grid_HWC).save(content, format="PNG")
    return content.getvalue()


def _row(
    rgb_HWC: NDArray[np.uint8], truth_HW: NDArray[np.float32], pred_HW: NDArray[np.float32]
) -> NDArray[np.uint8]:
    valid_HW = truth_HW > 0
    log_truth = np.log(np.maximum(truth_HW, 1e-3))
    low, high = np.percentile(log_truth[valid_HW], (1, 99)) if valid_HW.any() else (0.0, 1.0)
    span = max(float(high - low), 1e-3)
    log_pred = np.log(np.maximum(np.nan_to_num(pred_HW), 1e-3))
    error_HW = np.abs(pred_HW - truth_HW) / np.maximum(truth_HW, 1e-3) / _WORST_ERROR
    panels = [
        rgb_HWC,
        _coloured((log_truth - low) / span, _DEPTH_COLOURS, valid_HW),
        _coloured((log_pred - low) / span, _DEPTH_COLOURS, np.isfinite(pred_HW)),
        _coloured(error_HW, _ERROR_COLOURS, valid_HW & np.isfinite(pred_HW)),
    ]
    pad = ((0, _GAP), (0, _GAP), (0, 0))
    return np.concatenate([np.pad(p, pad, constant_values=255) for p in panels], axis=1)


def _coloured(
    share_HW: NDArray[Any], colours: str, shown_HW: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    import matplotlib as mpl

    rgba = mpl.colormaps[colours](np.clip(np.nan_to_num(share_HW), 0.0, 1.0), bytes=True)
    rgb_HWC: NDArray[np.uint8] = np.where(shown_HW[..., None], rgba[..., :3], _GREY)
    return rgb_HWC.astype(np.uint8)

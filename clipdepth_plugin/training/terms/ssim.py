"""SSIM, the structural similarity of two depth maps, for dense truth.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from kornia.metrics import ssim
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.term import LossTerm, Part, Truth, mean_from_moments, wide

SSIM_WINDOW = 11
"""Taps of the Gaussian window, whose sigma is 1.5 in kornia."""

_SMALLEST_RANGE = 1e-6


class Ssim(LossTerm):
    """1 - SSIM."""

    ssim: Weight = 0.5
    """Weight of 1 - SSIM of the maps, scaled by the truth's range; for dense truth."""

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""
        yield Part(
            "ssim",
            self.ssim,
            lambda given, truth: ssim_moments(given.depth, truth),
            mean_from_moments,
        )

    def defaults_for(self, head: HeadConfig) -> dict[str, Any]:
        """See ``LossTerm``."""
        return {} if head.metric or "ssim" in self.model_fields_set else {"ssim": 0.0}

    def check(self, head: HeadConfig, size: Size | None) -> None:  # noqa: ARG002
        """See ``LossTerm``."""
        if self.ssim > 0 and size is not None and min(size) <= SSIM_WINDOW // 2:
            raise ValueError(
                f"loss.ssim: needs maps larger than {SSIM_WINDOW // 2} pixels, output_size is "
                f"{tuple(size)}: train at a larger one, or set loss.ssim: 0"
            )


def ssim_moments(pred_B1HW: Tensor, truth: Truth) -> Tensor:
    """Sum of 1 - SSIM over the valid pixels, and their count (or weight).

    Each image's two maps are scaled by the smallest and largest valid true depth, clipped to
    [0, 1], and set to 0 together where not valid, so that holes are no difference. Window 11 x 11,
    sigma 1.5, borders reflected (kornia).

    Returns:
        (1, 2) float64.
    """
    depth_B1HW, valid_B1HW, inf = truth.depth_B1HW, truth.valid_B1HW, torch.inf
    low_B111 = depth_B1HW.masked_fill(~valid_B1HW, inf).amin(dim=(1, 2, 3), keepdim=True)
    high_B111 = depth_B1HW.masked_fill(~valid_B1HW, -inf).amax(dim=(1, 2, 3), keepdim=True)
    range_B111 = (high_B111 - low_B111).clamp_min(_SMALLEST_RANGE)

    def scaled(x_B1HW: Tensor) -> Tensor:
        kept_B1HW = torch.where(valid_B1HW, x_B1HW - low_B111, torch.zeros_like(x_B1HW))
        return (kept_B1HW / range_B111.to(x_B1HW.dtype)).clamp(0, 1)

    pair = scaled(pred_B1HW), scaled(depth_B1HW.to(pred_B1HW.dtype))
    map_B1HW = ssim(*pair, SSIM_WINDOW, eps=0.0)
    lost_B1HW = truth.weighed(wide((1 - map_B1HW).masked_fill(~valid_B1HW, 0)))
    return torch.stack([lost_B1HW.sum(), truth.total().to(lost_B1HW.dtype)])[None]

"""The loss terms, each as sums that can be pooled over processes, and what the sums mean.

A term is two functions: its sums over a batch, and the scalar they stand for. Adding the sums of
two batches and then taking the scalar is the same as taking it of both batches together.

Axes: B views, H W a map's size, S scales, K sums. Depths in metres.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.metrics import ssim
from torch import Tensor

from clipdepth_plugin.errors import TrainingError

SSIM_WINDOW = 11
"""Taps of the Gaussian window, whose sigma is 1.5 in kornia."""

_SMALLEST_SQUARE = 1e-7
_SMALLEST_RANGE = 1e-6


def silog_moments(
    pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor, min_depth: float = 1e-3
) -> Tensor:
    """Count, sum and sum of squares of d = log pred - log depth over the valid pixels.

    Args:
        pred_B1HW: Predicted metres.
        depth_B1HW: True metres; anything where not valid.
        valid_B1HW: Which pixels count.
        min_depth: Predictions below it (a dead ReLU gives 0) count as it, with zero gradient.

    Returns:
        (3,) float64, so that the variance survives its cancellation.
    """
    d_B1HW = _log_ratio(pred_B1HW, depth_B1HW, valid_B1HW, min_depth)
    wide_B1HW = _wide(d_B1HW)
    count = valid_B1HW.sum().to(wide_B1HW.dtype)
    return torch.stack([count, wide_B1HW.sum(), wide_B1HW.square().sum()])


def silog_from_moments(moments_3: Tensor, mean_weight: float = 0.15) -> Tensor:
    """10 * sqrt(var(d) + mean_weight * mean(d)^2), with the population's variance.

    Under the root nothing is smaller than 1e-7, as published: a perfect prediction gives 0.0032
    and no infinite gradient. Without a valid pixel it is that too, and the gradient zero.
    """
    count = moments_3[0].clamp_min(1)
    mean, mean_square = moments_3[1] / count, moments_3[2] / count
    variance = mean_square - mean.square()
    square = variance + mean_weight * mean.square()
    return 10 * square.clamp_min(_SMALLEST_SQUARE).sqrt()


def ssim_moments(pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """Sum of 1 - SSIM over the valid pixels, and their count.

    Each image's two maps are scaled by the smallest and largest valid true depth, clipped to
    [0, 1], and set to 0 together where not valid, so that holes are no difference. Window 11 x 11,
    sigma 1.5, borders reflected (kornia).

    Returns:
        (1, 2) float64.

    Raises:
        TrainingError: The maps are smaller than half the window.
    """
    if min(depth_B1HW.shape[-2:]) <= SSIM_WINDOW // 2:
        raise TrainingError(
            f"SSIM needs maps larger than {SSIM_WINDOW // 2} pixels, got "
            f"{tuple(depth_B1HW.shape[-2:])}: train at a larger output size, or set ssim to 0"
        )
    inf = torch.inf
    low_B111 = depth_B1HW.masked_fill(~valid_B1HW, inf).amin(dim=(1, 2, 3), keepdim=True)
    high_B111 = depth_B1HW.masked_fill(~valid_B1HW, -inf).amax(dim=(1, 2, 3), keepdim=True)
    range_B111 = (high_B111 - low_B111).clamp_min(_SMALLEST_RANGE)

    def scaled(x_B1HW: Tensor) -> Tensor:
        kept_B1HW = torch.where(valid_B1HW, x_B1HW - low_B111, torch.zeros_like(x_B1HW))
        return (kept_B1HW / range_B111.to(x_B1HW.dtype)).clamp(0, 1)

    pair = scaled(pred_B1HW), scaled(depth_B1HW.to(pred_B1HW.dtype))
    map_B1HW = ssim(*pair, SSIM_WINDOW, eps=0.0)
    lost_B1HW = _wide((1 - map_B1HW).masked_fill(~valid_B1HW, 0))
    return torch.stack([lost_B1HW.sum(), valid_B1HW.sum().to(lost_B1HW.dtype)])[None]


def gradient_moments(
    pred_B1HW: Tensor,
    depth_B1HW: Tensor,
    valid_B1HW: Tensor,
    scales: int = 4,
    min_depth: float = 1e-3,
) -> Tensor:
    """Multi-scale gradient matching in log depth (MegaDepth, arXiv 1804.00607, section 4).

    d = log pred - log depth is averaged over the valid pixels of cells of 1, 2, 4, ... pixels
    (MegaDepth takes every second pixel instead, which leaves no pairs in sparse ground truth);
    of each pair of neighbouring cells that both hold a valid pixel, the difference counts.

    Returns:
        (S, 2) float64: sum of |difference| over the pairs of both directions, and their count.
    """
    d_B1HW = _log_ratio(pred_B1HW, depth_B1HW, valid_B1HW, min_depth)
    share_B1HW = valid_B1HW.to(d_B1HW.dtype)
    sums = []
    for scale in range(scales):
        if scale:
            d_B1HW, share_B1HW = _halved(d_B1HW), _halved(share_B1HW)
        here_B1HW = share_B1HW > 0
        # Cells without a valid pixel hold 0; dividing them by 1 keeps their gradient finite.
        mean_B1HW = d_B1HW / torch.where(here_B1HW, share_B1HW, torch.ones_like(share_B1HW))
        differences, pairs = [], []
        for axis in (-2, -1):
            pair = _later(here_B1HW, axis) & _earlier(here_B1HW, axis)
            step = (_later(mean_B1HW, axis) - _earlier(mean_B1HW, axis)).abs()
            differences.append(_wide(step.masked_fill(~pair, 0)).sum())
            pairs.append(pair.sum())
        total = differences[0] + differences[1]
        sums.append(torch.stack([total, (pairs[0] + pairs[1]).to(total.dtype)]))
    return torch.stack(sums)


def confidence_moments(
    pred_B1HW: Tensor,
    log_scale_B1HW: Tensor,
    depth_B1HW: Tensor,
    valid_B1HW: Tensor,
    min_depth: float = 1e-3,
) -> Tensor:
    """Sum over the valid pixels of a Laplace distribution's negative log-likelihood, and count.

    log(2 b) + |d| / b with d = log pred - log depth and b = exp(log_scale): least where b is the
    mean |d| that is to be expected.

    Returns:
        (1, 2) float64.
    """
    d_B1HW = _log_ratio(pred_B1HW, depth_B1HW, valid_B1HW, min_depth)
    log_scale_B1HW = log_scale_B1HW.masked_fill(~valid_B1HW, 0)
    lost_B1HW = math.log(2) + log_scale_B1HW + d_B1HW.abs() * torch.exp(-log_scale_B1HW)
    wide_B1HW = _wide(lost_B1HW.masked_fill(~valid_B1HW, 0))
    return torch.stack([wide_B1HW.sum(), valid_B1HW.sum().to(wide_B1HW.dtype)])[None]


def mean_from_moments(moments_S2: Tensor) -> Tensor:
    """Mean over scales of sum / count; 0 where a scale has nothing to count."""
    return (moments_S2[:, 0] / moments_S2[:, 1].clamp_min(1)).mean()


def _log_ratio(
    pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor, min_depth: float
) -> Tensor:
    """Log pred - log depth, 0 (and no gradient, whatever is there) where not valid."""
    one = torch.ones((), dtype=pred_B1HW.dtype, device=pred_B1HW.device)
    pred_B1HW = torch.where(valid_B1HW, pred_B1HW, one).clamp_min(min_depth)
    depth_B1HW = torch.where(valid_B1HW, depth_B1HW.to(pred_B1HW.dtype), one)
    return (pred_B1HW.log() - depth_B1HW.log()).masked_fill(~valid_B1HW, 0)


def _wide(x: Tensor) -> Tensor:
    """Float64, which Apple's GPUs do not have."""
    return x if x.device.type == "mps" else x.double()


def _halved(x_B1HW: Tensor) -> Tensor:
    """Sums of 2 x 2 cells; the last row and column of odd sizes stand alone."""
    height, width = x_B1HW.shape[-2:]
    padded = F.pad(x_B1HW, (0, width % 2, 0, height % 2))
    return F.avg_pool2d(padded, 2) * 4


def _later(x_B1HW: Tensor, axis: int) -> Tensor:
    return x_B1HW.narrow(axis, 1, x_B1HW.shape[axis] - 1)


def _earlier(x_B1HW: Tensor, axis: int) -> Tensor:
    return x_B1HW.narrow(axis, 0, x_B1HW.shape[axis] - 1)

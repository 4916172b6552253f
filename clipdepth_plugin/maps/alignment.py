"""Scale and shift between two maps of inverse depth, as relative depth leaves them open.

The two ways of MiDaS (arXiv 1907.01341, section 5): least squares, and median with mean absolute
deviation, which outliers move less.

Axes: B pictures, N pixels of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAREST = 1e-3
_SMALLEST_SPREAD = 1e-6
"""Of values over their largest: with less a picture is constant."""


def inverse_of(depth: Tensor) -> Tensor:
    """1 / relative depth, of any shape: NaN stays NaN, what is nearer than 0.001 counts as that."""
    return depth.clamp_min(_NEAREST).reciprocal()


def least_squares(pred_BN: Tensor, truth_BN: Tensor, weight_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (B, 1) with the least weighted squares of scale * pred + shift - truth.

    Of a constant prediction the scale is 0 and the shift the mean truth; without weight both are 0.
    """
    total_B1 = weight_BN.sum(dim=1, keepdim=True)
    share_BN = weight_BN / _or_one(total_B1)

    def mean(x_BN: Tensor) -> Tensor:
        return (share_BN * x_BN).sum(dim=1, keepdim=True)

    mean_pred_B1, mean_truth_B1 = mean(pred_BN), mean(truth_BN)
    from_mean_BN = pred_BN - mean_pred_B1
    variance_B1 = mean(from_mean_BN.square())
    varies_B1 = variance_B1.sqrt() > _SMALLEST_SPREAD * mean_pred_B1.abs()
    covariance_B1 = mean(from_mean_BN * (truth_BN - mean_truth_B1))
    scale_B1 = torch.where(varies_B1, covariance_B1 / _or_one(variance_B1), 0.0)
    return scale_B1, mean_truth_B1 - scale_B1 * mean_pred_B1


def normalised(x_BN: Tensor, weight_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Maps less their median, over their (weighted) mean absolute deviation from it.

    The median is that of all pixels with a weight; of two in the middle the lesser.

    Returns:
        (B, N), 0 where nothing counts; (B,) bool, whether a picture varies: others are 0 all over.
        Gradients go through median and deviation, and are finite.
    """
    counts_BN = weight_BN > 0
    median_B1 = torch.where(counts_BN, x_BN, torch.nan).nanmedian(dim=1, keepdim=True).values
    from_median_BN = torch.where(counts_BN, x_BN - median_B1.nan_to_num(), 0.0)
    total_B1 = _or_one(weight_BN.sum(dim=1, keepdim=True))
    spread_B1 = (weight_BN * from_median_BN.abs()).sum(dim=1, keepdim=True) / total_B1
    largest_B1 = torch.where(counts_BN, x_BN, 0.0).detach().abs().amax(dim=1, keepdim=True)
    varies_B1 = spread_B1 > _SMALLEST_SPREAD * largest_B1
    from_median_BN = torch.where(varies_B1, from_median_BN, 0.0)
    return from_median_BN / torch.where(varies_B1, spread_B1, 1.0), varies_B1[:, 0]


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)

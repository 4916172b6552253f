"""Multi-scale gradient matching in log depth.

Axes: B views, H W a map's size, S scales. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.term import (
    LossTerm,
    Part,
    Truth,
    log_ratio,
    mean_from_moments,
    or_one,
    wide,
)


class Gradient(LossTerm):
    """Gradient matching."""

    gradient: Weight = 0.0
    """Weight of multi-scale gradient matching in log depth."""

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""
        options = (self.gradient_scales, self.min_depth)
        yield Part(
            "gradient",
            self.gradient,
            lambda given, truth: gradient_moments(given.depth, truth, *options),
            mean_from_moments,
        )


def gradient_moments(
    pred_B1HW: Tensor, truth: Truth, scales: int = 4, min_depth: float = 1e-3
) -> Tensor:
    """Multi-scale gradient matching in log depth (MegaDepth, arXiv 1804.00607, section 4).

    d = log pred - log depth is averaged over the valid pixels of cells of 1, 2, 4, ... pixels
    (MegaDepth takes every second pixel instead, which leaves no pairs in sparse ground truth);
    of each pair of neighbouring cells that both hold a valid pixel, the difference counts.

    Returns:
        (S, 2) float64; see ``difference_moments``.
    """
    return difference_moments(log_ratio(pred_B1HW, truth, min_depth), truth, scales)


def difference_moments(d_B1HW: Tensor, truth: Truth, scales: int) -> Tensor:
    """Sums of |difference| of neighbouring cells of an error, 0 where not valid.

    Where pixels have weights, a cell is their weighted mean, and a pair counts as much as the
    lesser of its cells' mean weights.

    Returns:
        (S, 2) float64: sum of |difference| over the pairs of both directions, and their count.
    """
    valid_B1HW = truth.valid_B1HW.to(d_B1HW.dtype)
    share_B1HW = truth.weights().to(d_B1HW.dtype)
    d_B1HW = truth.weighed(d_B1HW)
    sums = []
    for scale in range(scales):
        if scale:
            d_B1HW, share_B1HW = _halved(d_B1HW), _halved(share_B1HW)
            valid_B1HW = valid_B1HW if truth.weight_B1HW is None else _halved(valid_B1HW)
        here_B1HW = share_B1HW > 0
        # Cells without a valid pixel hold 0; dividing them by 1 keeps their gradient finite.
        mean_B1HW = d_B1HW / torch.where(here_B1HW, share_B1HW, torch.ones_like(share_B1HW))
        differences, pairs = [], []
        for axis in (-2, -1):
            pair = _later(here_B1HW, axis) & _earlier(here_B1HW, axis)
            step = (_later(mean_B1HW, axis) - _earlier(mean_B1HW, axis)).abs()
            step = wide(step.masked_fill(~pair, 0))
            if truth.weight_B1HW is not None:
                weight_B1HW = wide(share_B1HW / or_one(valid_B1HW))
                pair = torch.minimum(_later(weight_B1HW, axis), _earlier(weight_B1HW, axis))
            differences.append((step if pair.dtype == torch.bool else step * pair).sum())
            pairs.append(pair.sum())
        total = differences[0] + differences[1]
        sums.append(torch.stack([total, (pairs[0] + pairs[1]).to(total.dtype)]))
    return torch.stack(sums)


def _halved(x_B1HW: Tensor) -> Tensor:
    """Sums of 2 x 2 cells; the last row and column of odd sizes stand alone."""
    height, width = x_B1HW.shape[-2:]
    padded = F.pad(x_B1HW, (0, width % 2, 0, height % 2))
    return F.avg_pool2d(padded, 2) * 4


def _later(x_B1HW: Tensor, axis: int) -> Tensor:
    return x_B1HW.narrow(axis, 1, x_B1HW.shape[axis] - 1)


def _earlier(x_B1HW: Tensor, axis: int) -> Tensor:
    return x_B1HW.narrow(axis, 0, x_B1HW.shape[axis] - 1)

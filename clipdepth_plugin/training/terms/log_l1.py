"""The mean absolute error of log depth.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.term import (
    LossTerm,
    Part,
    Truth,
    log_ratio,
    mean_from_moments,
    trimmed,
    wide,
)


class LogL1(LossTerm):
    """Log-L1."""

    log_l1: Weight = 0.0
    """Weight of the mean of abs(log pred - log truth) over all valid pixels of the batch."""

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""
        options = (self.min_depth, self.trim)
        yield Part(
            "log_l1",
            self.log_l1,
            lambda given, truth: log_l1_moments(given.depth, truth, *options),
            mean_from_moments,
        )


def log_l1_moments(
    pred_B1HW: Tensor, truth: Truth, min_depth: float = 1e-3, trim: float = 0.0
) -> Tensor:
    """Sum of |log pred - log depth| over the pixels that count, and their number (or weight).

    Returns:
        (1, 2) float64.
    """
    d_B1HW = log_ratio(pred_B1HW, truth, min_depth)
    truth = trimmed(truth, d_B1HW, trim)
    lost_B1HW = truth.weighed(wide(d_B1HW.abs()).masked_fill(~truth.valid_B1HW, 0))
    return torch.stack([lost_B1HW.sum(), truth.total().to(lost_B1HW.dtype)])[None]

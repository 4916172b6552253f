"""The likelihood of the head's confidence, the predicted scale of its error.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.term import (
    LossTerm,
    Part,
    Truth,
    log_ratio,
    mean_from_moments,
    wide,
)


class Confidence(LossTerm):
    """A Laplace distribution's negative log-likelihood."""

    confidence: Weight = 0.0
    """Weight of the predicted scale's Laplace likelihood (``head.options.confidence``). The depth
    that it is the scale of counts as given: no gradient goes through that, though the layers that
    both share learn from both."""

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""

        def sums(given: DepthEstimate, truth: Truth) -> Tensor:
            assert given.log_scale is not None  # see ``check``
            pred_B1HW = given.depth.detach()
            return confidence_moments(pred_B1HW, given.log_scale, truth, self.min_depth)

        yield Part("confidence", self.confidence, sums, mean_from_moments, trains_depth=False)

    def check(self, head: HeadConfig, size: Size | None) -> None:  # noqa: ARG002
        """See ``LossTerm``."""
        if head.confidence != (self.confidence > 0):
            raise ValueError(
                f"loss.confidence: is {self.confidence:g}, head.options.confidence is "
                f"{head.confidence}: a head that predicts its confidence needs a weight for it "
                "(1.0, say), and only such a head"
            )


def confidence_moments(
    pred_B1HW: Tensor,
    log_scale_B1HW: Tensor,
    truth: Truth,
    min_depth: float = 1e-3,
) -> Tensor:
    """Sum of a Laplace distribution's negative log-likelihood, and count (or weight).

    log(2 b) + |d| / b with d = log pred - log depth and b = exp(log_scale): least where b is the
    mean |d| that is to be expected.

    Returns:
        (1, 2) float64.
    """
    d_B1HW, valid_B1HW = log_ratio(pred_B1HW, truth, min_depth), truth.valid_B1HW
    log_scale_B1HW = log_scale_B1HW.masked_fill(~valid_B1HW, 0)
    lost_B1HW = math.log(2) + log_scale_B1HW + d_B1HW.abs() * torch.exp(-log_scale_B1HW)
    wide_B1HW = truth.weighed(wide(lost_B1HW.masked_fill(~valid_B1HW, 0)))
    return torch.stack([wide_B1HW.sum(), truth.total().to(wide_B1HW.dtype)])[None]

"""SILog, the scale-invariant logarithmic error, of the output and of the auxiliary outputs.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.term import (
    LossTerm,
    Part,
    Sums,
    Truth,
    log_ratio,
    or_one,
    trimmed,
    wide,
)

_SMALLEST_SQUARE = 1e-7


class Silog(LossTerm):
    """SILog."""

    silog: Weight = 0.5
    """Weight of SILog, 10 * sqrt(var(d) + silog_mean * mean(d)^2) with d = log pred - log truth
    over all valid pixels of the batch together."""

    silog_mean: Weight = 0.15
    """How much a wrong scale of the whole batch counts in SILog; 1 makes it 10 * RMSElog."""

    auxiliary: tuple[Weight, ...] = (0.10, 0.05)
    """Weights of SILog on the head's auxiliary outputs, from stage 0 on; outputs beyond have none.
    Not given: as many of these as the head has outputs."""

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""

        def of(pick: Callable[[DepthEstimate], Tensor]) -> Sums:
            options = (self.min_depth, self.trim)
            return lambda given, truth: silog_moments(pick(given), truth, *options)

        value = partial(silog_from_moments, mean_weight=self.silog_mean)
        yield Part("silog", self.silog, of(lambda given: given.depth), value)
        for i, weight in enumerate(self.auxiliary):
            sums = of(lambda given, i=i: given.auxiliary[i])  # type: ignore[misc]
            yield Part(f"aux{i}", weight, sums, value, trains_depth=False)

    def defaults_for(self, head: HeadConfig) -> dict[str, Any]:
        """See ``LossTerm``."""
        outputs = head.auxiliary if head.metric else 0
        defaults: dict[str, Any] = {"auxiliary": self.auxiliary[:outputs]}
        if not head.metric:
            defaults["silog"] = 0.0
        return {name: x for name, x in defaults.items() if name not in self.model_fields_set}

    def check(self, head: HeadConfig, size: Size | None) -> None:  # noqa: ARG002
        """See ``LossTerm``."""
        if len(self.auxiliary) > head.auxiliary:
            raise ValueError(
                f"loss.auxiliary: weighs {len(self.auxiliary)} auxiliary outputs, this head has "
                f"{head.auxiliary}: shorten it ([] for none) or set head.options.auxiliary"
            )


def silog_moments(
    pred_B1HW: Tensor, truth: Truth, min_depth: float = 1e-3, trim: float = 0.0
) -> Tensor:
    """Count, sum and sum of squares of d = log pred - log depth over the pixels that count.

    Returns:
        (3,) float64, so that the variance survives its cancellation.
    """
    d_B1HW = log_ratio(pred_B1HW, truth, min_depth)
    if trim:
        truth = trimmed(truth, d_B1HW, trim)
        d_B1HW = d_B1HW.masked_fill(~truth.valid_B1HW, 0)
    wide_B1HW = wide(d_B1HW)
    count = truth.total().to(wide_B1HW.dtype)
    squares_B1HW = truth.weighed(wide_B1HW.square())
    return torch.stack([count, truth.weighed(wide_B1HW).sum(), squares_B1HW.sum()])


def silog_from_moments(moments_3: Tensor, mean_weight: float = 0.15) -> Tensor:
    """10 * sqrt(var(d) + mean_weight * mean(d)^2), with the population's variance.

    Under the root nothing is smaller than 1e-7, as published: a perfect prediction gives 0.0032
    and no infinite gradient. Without a valid pixel it is that too, and the gradient zero.
    """
    count = or_one(moments_3[0])
    mean, mean_square = moments_3[1] / count, moments_3[2] / count
    variance = mean_square - mean.square()
    square = variance + mean_weight * mean.square()
    return 10 * square.clamp_min(_SMALLEST_SQUARE).sqrt()

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
from clipdepth_plugin.training.terms.term import LossTerm, Part, Sums, log_ratio, wide

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
            return lambda given, depth, valid: silog_moments(
                pick(given), depth, valid, self.min_depth
            )

        value = partial(silog_from_moments, mean_weight=self.silog_mean)
        yield Part("silog", self.silog, of(lambda given: given.metres), value)
        for i, weight in enumerate(self.auxiliary):
            sums = of(lambda given, i=i: given.auxiliary[i])  # type: ignore[misc]
            yield Part(f"aux{i}", weight, sums, value, trains_depth=False)

    def defaults_for(self, head: HeadConfig) -> dict[str, Any]:
        """See ``LossTerm``."""
        given = "auxiliary" in self.model_fields_set
        return {} if given else {"auxiliary": self.auxiliary[: head.auxiliary]}

    def check(self, head: HeadConfig, size: Size | None) -> None:  # noqa: ARG002
        """See ``LossTerm``."""
        if len(self.auxiliary) > head.auxiliary:
            raise ValueError(
                f"loss.auxiliary: weighs {len(self.auxiliary)} auxiliary outputs, this head has "
                f"{head.auxiliary}: shorten it ([] for none) or set head.options.auxiliary"
            )


def silog_moments(
    pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor, min_depth: float = 1e-3
) -> Tensor:
    """Count, sum and sum of squares of d = log pred - log depth over the valid pixels.

    Returns:
        (3,) float64, so that the variance survives its cancellation.
    """
    d_B1HW = log_ratio(pred_B1HW, depth_B1HW, valid_B1HW, min_depth)
    wide_B1HW = wide(d_B1HW)
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

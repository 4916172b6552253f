"""LossTerm: what every term of the loss gives, and what the terms share.

A term is computed in two steps: sums over a batch, and the scalar that the sums stand for. Sums
of several batches (or processes) are added before the scalar is taken, which gives the term of all
of them together.

Axes: B views, H W a map's size, N its pixels, S scales, K sums. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.settings import GivenMetres, Settings

_ROUNDING = 1e-9
"""Relative, of sums of weights."""


class Truth(NamedTuple):
    """What a batch's predictions are compared with.

    Attributes:
        depth_B1HW: True metres; for a head of relative depth inverse depth.
        valid_B1HW: Bool, where there is truth. What lies elsewhere is never used.
        weight_B1HW: Floats 0..1, how much each pixel counts; None: all the same.
    """

    depth_B1HW: Tensor
    valid_B1HW: Tensor
    weight_B1HW: Tensor | None = None

    def weighed(self, x_B1HW: Tensor) -> Tensor:
        """``x_B1HW``, which is 0 where not valid, times the weights."""
        return x_B1HW if self.weight_B1HW is None else x_B1HW * self.weights().to(x_B1HW.dtype)

    def weights(self) -> Tensor:
        """(B, 1, H, W) weights, 0 where not valid; bool where all are the same."""
        if self.weight_B1HW is None:
            return self.valid_B1HW
        return self.weight_B1HW.masked_fill(~self.valid_B1HW, 0)

    def wide_weights(self) -> Tensor:
        """(B, N) float64 weights of each view's pixels, 0 where not valid."""
        return wide(self.weights().float().flatten(1))

    def total(self) -> Tensor:
        """Number of valid pixels; the sum of their weights, where they have some."""
        return self.weights().sum() if self.weight_B1HW is None else wide(self.weights()).sum()


Sums = Callable[[DepthEstimate, Truth], Tensor]
"""(estimate, truth) -> sums: float64, of any shape. The estimate is float32 or float64."""


class Part(NamedTuple):
    """One number of the loss.

    Attributes:
        name: In the log.
        weight: Of the value in the total; parts of weight 0 are not computed.
        sums: Of a batch.
        value: Sums -> the number, a scalar.
        trains_depth: Whether it trains the depth output.
        metric: Whether it compares metres; else relative depth, by another kind of head.
    """

    name: str
    weight: float
    sums: Sums
    value: Callable[[Tensor], Tensor]
    trains_depth: bool = True
    metric: bool = True


class LossTerm(Settings):
    """A term of the loss; its fields are fields of ``loss:`` in the config."""

    min_depth: GivenMetres = 1e-3
    """Metres. Predictions below it count as it in the logarithms: a dead ReLU's 0 m costs a
    lot, but no infinity."""

    gradient_scales: Annotated[int, Field(ge=1, le=16)] = 4
    """Scales of gradient matching: cells of 1, 2, 4, ... pixels."""

    trim: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of each picture's pixels that are left out of SILog, log-L1 and the
    scale-and-shift-invariant error: those with the largest errors, as a teacher's labels are wrong
    there (0.1: Depth Anything V2). Where pixels have weights, of each picture's weight."""

    def parts(self) -> Iterator[Part]:
        """Its numbers, those of weight 0 too."""
        raise NotImplementedError

    def defaults_for(self, head: HeadConfig) -> dict[str, Any]:  # noqa: ARG002
        """Fields whose default depends on the head, where they are not given."""
        return {}

    def check(self, head: HeadConfig, size: Size | None) -> None:
        """Checks the fields against the head and the maps' size (H, W), None where not known.

        Raises:
            ValueError: They contradict each other; begins with the field.
        """


def mean_from_moments(moments_S2: Tensor) -> Tensor:
    """Mean over scales of sum / count; 0 where a scale has nothing to count."""
    return (moments_S2[:, 0] / or_one(moments_S2[:, 1])).mean()


def or_one(count: Tensor) -> Tensor:
    """Counts to divide by: 1 where there is nothing to count."""
    return torch.where(count > 0, count, torch.ones_like(count))


def trimmed(truth: Truth, error_B1HW: Tensor, share: float) -> Truth:
    """The truth without those pixels of each picture whose |error| is largest.

    As many as do not exceed ``share`` of the picture's pixels (of their weight) are no longer
    valid, of equal errors (in float32) the first; NaN stays, to be seen.
    """
    if share == 0:
        return truth
    weight_BN = truth.wide_weights()
    error_BN = error_B1HW.detach().float().abs().nan_to_num(nan=0.0).flatten(1)
    # The bits of floats of one sign are in their order, and whole numbers are sorted faster.
    key_BN = error_BN.contiguous().view(torch.int32).masked_fill(weight_BN <= 0, -1)
    order_BN = key_BN.argsort(dim=1, descending=True, stable=True)
    reached_BN = weight_BN.gather(1, order_BN).cumsum(dim=1)
    out_BN = reached_BN <= share * reached_BN[:, -1:] * (1 + _ROUNDING)
    lost_BN = torch.zeros_like(out_BN).scatter(1, order_BN, out_BN)
    return truth._replace(valid_B1HW=truth.valid_B1HW & ~lost_BN.view_as(truth.valid_B1HW))


def log_ratio(pred_B1HW: Tensor, truth: Truth, min_depth: float) -> Tensor:
    """Log pred - log depth, 0 (and no gradient, whatever is there) where not valid."""
    depth_B1HW, valid_B1HW = truth.depth_B1HW, truth.valid_B1HW
    one = torch.ones((), dtype=pred_B1HW.dtype, device=pred_B1HW.device)
    pred_B1HW = torch.where(valid_B1HW, pred_B1HW, one).clamp_min(min_depth)
    depth_B1HW = torch.where(valid_B1HW, depth_B1HW.to(pred_B1HW.dtype), one)
    return (pred_B1HW.log() - depth_B1HW.log()).masked_fill(~valid_B1HW, 0)


def with_scale_share(pred_B1HW: Tensor, truth: Truth, share_B: Tensor, min_depth: float) -> Tensor:
    """Predictions as a loss sees them in which only a share of each view's scale counts.

    With d = log pred - log depth, its mean over the view's valid pixels (by their weights) becomes
    ``share_B`` of what it was; the gradient goes through the mean. 1 leaves a view's predictions
    as they are, 0 makes every term blind to their scale. Where not valid, what it gives is finite.
    """
    d_B1HW = log_ratio(pred_B1HW, truth, min_depth)
    axes, valid_B1HW = (1, 2, 3), truth.valid_B1HW
    count_B111 = or_one(truth.weights().sum(dim=axes, keepdim=True))
    sum_B111 = truth.weighed(wide(d_B1HW)).sum(dim=axes, keepdim=True)
    mean_B111 = (sum_B111 / count_B111).to(d_B1HW.dtype)
    lost_B111 = (1 - share_B).to(d_B1HW.dtype)[:, None, None, None] * mean_B111
    # Products with what is not valid, maybe NaN, would reach the mean's gradient.
    return torch.where(valid_B1HW, pred_B1HW, torch.ones_like(pred_B1HW)) * torch.exp(-lost_B111)


def wide(x: Tensor) -> Tensor:
    """Float64, which Apple's GPUs do not have."""
    return x if x.device.type == "mps" else x.double()

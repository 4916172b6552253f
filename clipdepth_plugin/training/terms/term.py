"""LossTerm: what every term of the loss gives, and what the terms share.

A term is computed in two steps: sums over a batch, and the scalar that the sums stand for. Sums
of several batches (or processes) are added before the scalar is taken, which gives the term of all
of them together.

Axes: B views, H W a map's size, S scales, K sums. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipdepth_plugin.arguments import GivenMetres, Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.settings import Settings

Sums = Callable[[DepthEstimate, Tensor, Tensor], Tensor]
"""(estimate, true metres (B, 1, H, W), bool (B, 1, H, W) where there is truth) -> sums.

What lies where there is no truth is never used. The estimate is float32 or float64, the sums are
float64, of any shape.
"""


class Part(NamedTuple):
    """One number of the loss.

    Attributes:
        name: In the log.
        weight: Of the value in the total; parts of weight 0 are not computed.
        sums: Of a batch.
        value: Sums -> the number, a scalar.
        trains_depth: Whether it trains the depth output.
    """

    name: str
    weight: float
    sums: Sums
    value: Callable[[Tensor], Tensor]
    trains_depth: bool = True


class LossTerm(Settings):
    """A term of the loss; its fields are fields of ``loss:`` in the config."""

    min_depth: GivenMetres = 1e-3
    """Metres. Predictions below it count as it in the logarithms: a dead ReLU's 0 m costs a
    lot, but no infinity."""

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
    return (moments_S2[:, 0] / moments_S2[:, 1].clamp_min(1)).mean()


def log_ratio(
    pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor, min_depth: float
) -> Tensor:
    """Log pred - log depth, 0 (and no gradient, whatever is there) where not valid."""
    one = torch.ones((), dtype=pred_B1HW.dtype, device=pred_B1HW.device)
    pred_B1HW = torch.where(valid_B1HW, pred_B1HW, one).clamp_min(min_depth)
    depth_B1HW = torch.where(valid_B1HW, depth_B1HW.to(pred_B1HW.dtype), one)
    return (pred_B1HW.log() - depth_B1HW.log()).masked_fill(~valid_B1HW, 0)


def with_scale_share(
    pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor, share_B: Tensor, min_depth: float
) -> Tensor:
    """Predictions as a loss sees them in which only a share of each view's scale counts.

    With d = log pred - log depth, its mean over the view's valid pixels becomes ``share_B`` of
    what it was; the gradient goes through the mean. 1 leaves a view's predictions as they are, 0
    makes every term blind to their scale. Where not valid, what it gives is finite.
    """
    d_B1HW = log_ratio(pred_B1HW, depth_B1HW, valid_B1HW, min_depth)
    axes = (1, 2, 3)
    count_B111 = valid_B1HW.sum(dim=axes, keepdim=True).clamp_min(1)
    mean_B111 = (wide(d_B1HW).sum(dim=axes, keepdim=True) / count_B111).to(d_B1HW.dtype)
    lost_B111 = (1 - share_B).to(d_B1HW.dtype)[:, None, None, None] * mean_B111
    # Products with what is not valid, maybe NaN, would reach the mean's gradient.
    return torch.where(valid_B1HW, pred_B1HW, torch.ones_like(pred_B1HW)) * torch.exp(-lost_B111)


def wide(x: Tensor) -> Tensor:
    """Float64, which Apple's GPUs do not have."""
    return x if x.device.type == "mps" else x.double()

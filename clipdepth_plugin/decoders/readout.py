"""From decoder maps to depth and its confidence: the depth output and the auxiliary ones.

SPACE-CLIP, arXiv 2601.17657, section 3.5; the activations other than ``relu`` are ours.

Axes: B views, C channels, H W a map's size, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdepth_plugin.decoders.blocks import ConvNormAct, resize
from clipdepth_plugin.errors import HeadMismatchError
from clipdepth_plugin.head_config import Activation, HeadConfig
from clipdepth_plugin.metric_calibration import MetricCalibration

BINS = 64
"""K of the ``bins`` activation."""

CONFIDENT_FACTOR = 1.25
"""A confidence is the probability of a depth within this factor of the true one (delta < 1.25)."""

SCALE_RANGE = (0.003, 3.0)
"""Smallest and largest predicted scale of the error of log depth; starts at their middle, 0.095."""


_SMALLEST = 1e-6


class DepthEstimate(NamedTuple):
    """What a decoder gives.

    Attributes:
        depth: (B, 1, H, W) float32: metres; of a head with ``config.metric`` False relative depth.
        log_scale: (B, 1, H, W) float32, log b of the predicted Laplace distribution of log depth;
            None for heads without confidence.
        auxiliary: Auxiliary depths, where they were asked for.
    """

    depth: Tensor
    log_scale: Tensor | None = None
    auxiliary: tuple[Tensor, ...] = ()


class DepthActivation(nn.Module):
    """From logits to depth, in two steps; no weights. See ``HeadConfig.activation``.

    ``to_level`` gives one map that may be mixed and resized, ``forward`` its depth. ``channels`` is
    the number of logits: 1, or K for ``bins``.
    """

    def __init__(self, kind: Activation, depth_range: tuple[float, float]) -> None:
        super().__init__()
        self.kind = kind
        self.log_low, self.log_high = (math.log(end) for end in depth_range)
        self.channels = BINS if kind == "bins" else 1

    def to_level(self, logits_BCHW: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 1, H, W): the logit, or the bins' expected log depth.

        The latter as a share, 0..1, of the way from the nearest to the farthest.
        """
        if self.kind != "bins":
            return logits_BCHW
        shares_K = torch.linspace(0, 1, BINS, device=logits_BCHW.device, dtype=logits_BCHW.dtype)
        # No matrix product: autocast would make it one of half precision.
        weights_BKHW = logits_BCHW.softmax(dim=1)
        return (weights_BKHW * shares_K[:, None, None]).sum(dim=1, keepdim=True)

    def forward(self, level_B1HW: Tensor) -> Tensor:
        """(B, 1, H, W) levels -> (B, 1, H, W) depth."""
        match self.kind:
            case "relu":
                return F.relu(level_B1HW)
            case "softplus":
                return F.softplus(level_B1HW)
            case "log":
                share_B1HW = torch.sigmoid(level_B1HW)
            case "bins":
                share_B1HW = level_B1HW
        return torch.exp(self.log_low + (self.log_high - self.log_low) * share_B1HW)


def bounded_log_scale(logits_B1HW: Tensor) -> Tensor:
    """Log b from its logits, between the logarithms of ``SCALE_RANGE``'s ends."""
    low, high = (math.log(end) for end in SCALE_RANGE)
    return low + (high - low) * torch.sigmoid(logits_B1HW)


def confidence_of(log_scale: Tensor) -> Tensor:
    """Probability, 0..1, that the true depth is within a factor of 1.25 of the predicted one.

    1 - exp(-log(1.25) / b), of a Laplace distribution of log depth around it.
    """
    return -torch.expm1(-math.log(CONFIDENT_FACTOR) / log_scale.exp())


class DepthReadout(nn.Module):
    """Conv 3x3 - norm - ReLU - Conv to one channel - activation, then resize."""

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        config: HeadConfig,
        *,
        kernel: int,
        confidence: bool = False,
    ) -> None:
        """``kernel``: of the last convolution; ``confidence``: also predict the error's scale."""
        super().__init__()
        self.hidden = ConvNormAct(in_channels, hidden, config.norm, "relu")
        self.activation = DepthActivation(config.activation, config.depth_range)
        outputs = self.activation.channels + confidence
        self.to_depth = nn.Conv2d(hidden, outputs, kernel, padding=kernel // 2)

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None) -> DepthEstimate:
        """(B, C, H, W) -> (B, 1, *size) maps; ``size`` None keeps (H, W).

        Activation and resize run in float32 for weights of any dtype: half precision keeps only 8
        to 11 bits of a depth.
        """
        return read_estimate(self.activation, self.to_depth(self.hidden(x_BCHW)), size)


def read_estimate(
    activation: DepthActivation, logits_BCHW: Tensor, size: tuple[int, int] | None
) -> DepthEstimate:
    """An estimate from a decoder's last map; ``size`` None keeps its size.

    There are ``activation.channels`` logits; one more predicts the error's scale.
    """
    logits_BCHW, channels = logits_BCHW.float(), activation.channels
    depth_B1HW = activation(activation.to_level(logits_BCHW[:, :channels]))
    confident = logits_BCHW.shape[1] > channels
    return resized_estimate(depth_B1HW, logits_BCHW[:, channels:] if confident else None, size)


def resized_estimate(
    depth_B1HW: Tensor, scale_logits_B1HW: Tensor | None, size: tuple[int, int] | None
) -> DepthEstimate:
    """An estimate from maps at a decoder's own size; ``size`` None keeps it."""
    log_scale = None if scale_logits_B1HW is None else bounded_log_scale(scale_logits_B1HW)
    if size is None:
        return DepthEstimate(depth_B1HW, log_scale)
    resized = None if log_scale is None else resize(log_scale, size)
    return DepthEstimate(resize(depth_B1HW, size), resized)


def calibrated(
    decode: Callable[[tuple[int, int] | None], DepthEstimate],
    config: HeadConfig,
    size: tuple[int, int] | None,
) -> DepthEstimate:
    """A decoder's estimate with ``config.calibration`` and ``config.confidence_scale`` in it.

    ``decode`` gives it at a size. A slope is no linear map: it is applied at the native size, and
    then resized, as maps are everywhere else. The calibration moves the whole distribution of log
    depth, so that its scale grows by the slope.
    """
    fitted = config.calibration
    slope = 1.0 if fitted is None else fitted.slope
    estimate = decode(size if slope == 1 else None)
    log_scale, spread = estimate.log_scale, config.confidence_scale * slope
    if log_scale is not None and spread != 1:
        log_scale = log_scale + math.log(spread)
    if fitted is None:
        return estimate._replace(log_scale=log_scale)
    maps = (estimate.depth, *estimate.auxiliary)
    depth, *auxiliary = (_measured(one_B1HW, fitted) for one_B1HW in maps)
    if slope != 1 and size is not None:
        depth, *auxiliary = (resize(one_B1HW, size) for one_B1HW in (depth, *auxiliary))
        log_scale = None if log_scale is None else resize(log_scale, size)
    return DepthEstimate(depth, log_scale, tuple(auxiliary))


def _measured(depth_B1HW: Tensor, fitted: MetricCalibration) -> Tensor:
    if fitted.slope == 1:
        return depth_B1HW * fitted.scale
    # relu gives 0, whose power has no gradient.
    share_B1HW = depth_B1HW.clamp_min(_SMALLEST) / fitted.pivot
    return share_B1HW.pow(fitted.slope) * (fitted.scale * fitted.pivot)


NO_CONFIDENCE = (
    "this head predicts no confidence (config.confidence is False): train one with "
    "head.options.confidence: true and a weight for loss.confidence"
)


def with_confidence(estimate: DepthEstimate) -> tuple[Tensor, Tensor]:
    """Depth and its confidence; a HeadMismatchError where the head predicts none."""
    if estimate.log_scale is None:
        raise HeadMismatchError(NO_CONFIDENCE)
    return estimate.depth, confidence_of(estimate.log_scale)

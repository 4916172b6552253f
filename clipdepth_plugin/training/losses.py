"""DepthLoss: what training minimises, and LossConfig, which says so.

Axes: B views, H W a map's size. Depths in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.loss_terms import (
    confidence_moments,
    gradient_moments,
    mean_from_moments,
    silog_from_moments,
    silog_moments,
    ssim_moments,
)
from clipdepth_plugin.training.pooling import sum_over_processes

__all__ = [
    "DepthLoss",
    "LossConfig",
    "LossTerms",
    "silog_from_moments",
    "silog_moments",
    "sum_over_processes",
]

Reduce = Callable[[Tensor], Tensor]


class LossConfig(BaseModel):
    """Weights of the loss; the defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    silog: NonNegativeFloat = 0.5
    """Weight of SILog, 10 * sqrt(var(d) + silog_mean * mean(d)^2) with d = log pred - log truth
    over all valid pixels of the batch together."""

    silog_mean: NonNegativeFloat = 0.15
    """How much a wrong scale of the whole batch counts in SILog; 1 makes it 10 * RMSElog."""

    ssim: NonNegativeFloat = 0.5
    """Weight of 1 - SSIM of the maps, scaled by the truth's range; for dense truth."""

    gradient: NonNegativeFloat = 0.0
    """Weight of multi-scale gradient matching in log depth."""

    gradient_scales: PositiveInt = 4
    """Scales of gradient matching: cells of 1, 2, 4, ... pixels."""

    confidence: NonNegativeFloat = 0.0
    """Weight of the predicted scale's Laplace likelihood (``head.options.confidence``). The depth
    that it is the scale of counts as given: no gradient goes through that, though the layers that
    both share learn from both."""

    auxiliary: tuple[NonNegativeFloat, ...] = (0.10, 0.05)
    """Weights of SILog on the auxiliary outputs, from stage 0 on; outputs beyond have none."""

    min_depth: PositiveFloat = 1e-3
    """Metres. Predictions below it count as it in the logarithms: a dead ReLU's 0 m costs a
    lot, but no infinity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any((self.silog, self.ssim, self.gradient)):
            raise ValueError("silog, ssim and gradient are all 0: nothing would train the output")
        return self


@dataclass(frozen=True)
class LossTerms:
    """One batch's loss.

    Attributes:
        total: The weighted sum, with its graph; float32.
        terms: Name -> each term before its weight, detached: ``silog``, ``ssim``, ``gradient``,
            ``confidence``, ``aux0``, ``aux1``, ...; those with weight 0 are left out.
        valid_pixels: Valid pixels, over all processes, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    valid_pixels: Tensor


class DepthLoss:
    """The weighted sum of the terms of ``LossConfig``.

    Every term is a function of sums over the batch. With ``reduce`` these are pooled over the
    processes first, so each process gets the very loss of all their samples together.
    """

    def __init__(self, config: LossConfig, reduce: Reduce | None = None) -> None:
        """Keeps both.

        Args:
            config: The weights.
            reduce: Sums a (K,) tensor over processes, differentiably: ``sum_over_processes``.
                The gradients then have to be averaged over the processes, as
                ``DistributedDataParallel`` does. None: this process alone.
        """
        self.config = config
        self._reduce = reduce

    def __call__(
        self,
        pred_B1HW: Tensor,
        aux: Sequence[Tensor],
        depth_B1HW: Tensor,
        valid_B1HW: Tensor,
        log_scale_B1HW: Tensor | None = None,
    ) -> LossTerms:
        """The loss of one batch.

        Args:
            pred_B1HW: Predicted metres.
            aux: Auxiliary outputs of the same shape, stage 0 first.
            depth_B1HW: True metres; what lies where not valid is never used.
            valid_B1HW: Bool; may be sparse, or empty, which gives zero gradients.
            log_scale_B1HW: Predicted log scale of the error of log depth, where there is one.

        Raises:
            TrainingError: The shapes differ, or an output that has a weight is not there.
        """
        self._check(pred_B1HW, aux, depth_B1HW, valid_B1HW)
        sums = self._sums(_at_least_32(pred_B1HW), aux, depth_B1HW, valid_B1HW)
        if self.config.confidence > 0:
            if log_scale_B1HW is None:
                raise TrainingError(
                    "loss.confidence has a weight, but the head predicts no confidence: set "
                    "head.options.confidence: true, or loss.confidence: 0"
                )
            sums["confidence"] = confidence_moments(
                _at_least_32(pred_B1HW).detach(),
                _at_least_32(log_scale_B1HW),
                depth_B1HW,
                valid_B1HW,
                self.config.min_depth,
            )
        if self._reduce is not None:
            flat_K = self._reduce(torch.cat([one.flatten() for one in sums.values()]))
            pieces = torch.split(flat_K, [one.numel() for one in sums.values()])
            sums = {n: p.view_as(one) for (n, one), p in zip(sums.items(), pieces, strict=True)}
        values = {name: self._value(name, one) for name, one in sums.items()}
        weights = {name: self._weight(name) for name in values}
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return LossTerms(
            total.float(),
            {name: value.detach().float() for name, value in values.items() if weights[name] > 0},
            sums["silog"][0].detach(),
        )

    def _sums(
        self, pred_B1HW: Tensor, aux: Sequence[Tensor], depth_B1HW: Tensor, valid_B1HW: Tensor
    ) -> dict[str, Tensor]:
        config, truth = self.config, (depth_B1HW, valid_B1HW)
        # Always there, as it counts the valid pixels.
        sums = {"silog": silog_moments(pred_B1HW, *truth, config.min_depth)}
        if config.ssim > 0:
            sums["ssim"] = ssim_moments(pred_B1HW, *truth)
        if config.gradient > 0:
            sums["gradient"] = gradient_moments(
                pred_B1HW, *truth, config.gradient_scales, config.min_depth
            )
        for index, (weight, aux_B1HW) in enumerate(zip(config.auxiliary, aux, strict=False)):
            if weight > 0:
                sums[f"aux{index}"] = silog_moments(
                    _at_least_32(aux_B1HW), *truth, config.min_depth
                )
        return sums

    def _value(self, name: str, sums: Tensor) -> Tensor:
        if name == "silog" or name.startswith("aux"):
            return silog_from_moments(sums, self.config.silog_mean)
        return mean_from_moments(sums)

    def _weight(self, name: str) -> float:
        if name.startswith("aux"):
            return self.config.auxiliary[int(name.removeprefix("aux"))]
        weight: float = getattr(self.config, name)
        return weight

    def _check(
        self, pred_B1HW: Tensor, aux: Sequence[Tensor], depth_B1HW: Tensor, valid_B1HW: Tensor
    ) -> None:
        shapes = {tuple(x.shape) for x in (pred_B1HW, *aux, depth_B1HW, valid_B1HW)}
        if len(shapes) != 1 or pred_B1HW.ndim != 4 or valid_B1HW.dtype != torch.bool:
            raise TrainingError(
                f"loss: prediction {tuple(pred_B1HW.shape)}, auxiliary "
                f"{[tuple(x.shape) for x in aux]}, depth {tuple(depth_B1HW.shape)} and valid "
                f"{tuple(valid_B1HW.shape)} ({valid_B1HW.dtype}) must have one shape (B, 1, H, W), "
                "and valid be bool: give the head the truth's size"
            )
        wanted = len(self.config.auxiliary)
        if len(aux) < wanted:
            raise TrainingError(
                f"loss.auxiliary has {wanted} weights, the head gives {len(aux)} auxiliary "
                f"outputs: set head.auxiliary to {wanted} or more, or shorten loss.auxiliary"
            )


def _at_least_32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()

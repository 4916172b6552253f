"""How good a predicted confidence is: calibration error and risk-coverage curve.

A confidence is the probability that the true depth is within a factor of 1.25 of the prediction.
If it is calibrated, 80% of the pixels with confidence 0.8 are. If it is useful, the pixels with the
highest confidence have the smallest errors.

Axes: N pixels, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.decoders.readout import CONFIDENT_FACTOR
from clipdepth_plugin.errors import DataError

PIXELS = 1000
"""Taken of each picture, evenly spaced; all of a picture that has fewer. Every picture has the same
weight: a pixel's is one over the number taken of its picture."""

BINS = 15
POINTS = 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """The figures of a data set, every picture weighing the same.

    Attributes:
        pixels: Number of pixels.
        mean_confidence: Mean predicted probability.
        share_right: Share of pixels within a factor of 1.25; equal to it on average, if calibrated.
        calibration_error: Expected calibration error over 15 even bins of confidence: the mean
            difference of a bin's mean confidence and its share of right pixels, 0..1.
        area: Area under the risk-coverage curve: mean over all coverages of the AbsRel of the
            surest pixels.
        area_of_the_error: The same where pixels are ordered by their error: the best possible area.
        abs_rel: AbsRel of all these pixels: the area of an uninformed confidence.
        curve: (coverage, AbsRel of that share of the pixels, the surest ones) at 5%, 10% ... 100%.
    """

    pixels: int
    mean_confidence: float
    share_right: float
    calibration_error: float
    area: float
    area_of_the_error: float
    abs_rel: float
    curve: tuple[tuple[float, float], ...]


def take_pixels(
    confidence_HW: Tensor, pred_HW: Tensor, depth_HW: Tensor, valid_HW: Tensor
) -> Tensor:
    """Some pixels of a picture, for ``calibrate``; at least one is valid.

    Returns:
        (3, N) float64: the confidence; 1 where the prediction is within a factor of 1.25, else 0;
        |prediction - truth| / truth.
    """
    valid_N = valid_HW.flatten().nonzero()[:, 0]
    chosen = torch.linspace(0, len(valid_N) - 1, min(PIXELS, len(valid_N)), dtype=torch.float64)
    taken_N = valid_N[chosen.round().long()]
    maps = torch.stack([confidence_HW, pred_HW, depth_HW]).flatten(1)
    confidence_N, pred_N, depth_N = maps[:, taken_N].double()
    right_N = torch.maximum(pred_N / depth_N, depth_N / pred_N) < CONFIDENT_FACTOR
    return torch.stack([confidence_N, right_N.double(), (pred_N - depth_N).abs() / depth_N])


def calibrate(samples: Sequence[Tensor]) -> Calibration:
    """The figures of the pixels that ``take_pixels`` gave of each picture.

    Raises:
        DataError: No pixels, or confidences outside 0..1.
    """
    if not samples:
        raise DataError("no picture to calibrate on: the data set has no valid depth")
    confidence_N, right_N, error_N = torch.cat(list(samples), dim=1)
    if not bool(((confidence_N >= 0) & (confidence_N <= 1)).all()):
        raise DataError("a predicted confidence is not a probability between 0 and 1")
    counts = torch.tensor([one.shape[1] for one in samples])
    weight_N = (1 / counts.double()).repeat_interleave(counts)
    weight_N = weight_N / weight_N.sum()
    bins_N = (confidence_N * BINS).long().clamp_max(BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins_N, weight_N * (confidence_N - right_N))
    coverage_N, risk_N, area = _risk_curve(error_N, confidence_N, weight_N)
    nearest = [(coverage_N - (i + 1) / POINTS).abs().argmin() for i in range(POINTS)]
    return Calibration(
        pixels=len(error_N),
        mean_confidence=float(weight_N @ confidence_N),
        share_right=float(weight_N @ right_N),
        calibration_error=float(gaps.abs().sum()),
        area=area,
        area_of_the_error=_risk_curve(error_N, -error_N, weight_N)[2],
        abs_rel=float(weight_N @ error_N),
        curve=tuple((float(coverage_N[i]), float(risk_N[i])) for i in nearest),
    )


def _risk_curve(
    error_N: Tensor, sureness_N: Tensor, weight_N: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Coverage and mean error of the surest 1, 2 ... N pixels, (N,) each; and the area below."""
    order_N = sureness_N.argsort(descending=True)
    sorted_N, error_N, weight_N = (x_N[order_N] for x_N in (sureness_N, error_N, weight_N))
    # The order within a run of equals is arbitrary: each pixel gets the run's mean error.
    _, runs_N = sorted_N.unique_consecutive(return_inverse=True)
    sums, weights = torch.zeros(2, int(runs_N[-1]) + 1, dtype=torch.float64)
    sums.index_add_(0, runs_N, weight_N * error_N)
    weights.index_add_(0, runs_N, weight_N)
    even_N = (sums / weights)[runs_N]
    until_N = weight_N.cumsum(0)
    risk_N = (weight_N * even_N).cumsum(0) / until_N
    return until_N / until_N[-1], risk_N, float(weight_N @ risk_N)

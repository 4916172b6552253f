"""Depth metrics of one image at a time, and their means over images.

Axes: H W pixels, N valid pixels of one image. Depths in metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.protocols import Alignment
from clipdepth_plugin.maps.alignment import inverse_of, least_squares

ALIGNMENTS: tuple[Alignment, ...] = ("none", "median", "lsq")
"""``none``: metres as predicted. ``median``: times median(truth) / median(prediction) of each
image. ``lsq``: times the factor with the least squared error in metres of each image."""

RELATIVE_ALIGNMENTS: tuple[Alignment, ...] = ("inverse",)
"""``inverse``: scale and shift of inverse depth with the least squared error there, of each image:
all that relative depth can be measured by."""

BOUNDARY_JUMP = 0.05
"""Jump of log depth between neighbouring pixels that makes a boundary: 5% of depth."""

BOUNDARY_RADIUS = 3
"""Boundaries are dilated, and the valid mask eroded, by squares of 7 x 7."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a report.

    Attributes:
        name: Its name in files.
        label: Its name in tables.
        lower_is_better: Whether an error, not a score.
        unit: "m" or "".
    """

    name: str
    label: str
    lower_is_better: bool = True
    unit: str = ""


METRICS: tuple[Metric, ...] = (
    Metric("abs_rel", "AbsRel"),
    Metric("sq_rel", "SqRel", unit="m"),
    Metric("rmse", "RMSE", unit="m"),
    Metric("rmse_log", "RMSElog"),
    Metric("log10", "log10"),
    Metric("silog", "SILog x100"),
    Metric("delta1", "d<1.25", lower_is_better=False),
    Metric("delta2", "d<1.25^2", lower_is_better=False),
    Metric("delta3", "d<1.25^3", lower_is_better=False),
    Metric("boundary_abs_rel", "edge AbsRel"),
)


def image_metrics(
    pred_HW: Tensor, depth_HW: Tensor, valid_HW: Tensor, boundary_HW: Tensor
) -> dict[str, float]:
    """All metrics of one image.

    Args:
        pred_HW: Predicted metres.
        depth_HW: True metres.
        valid_HW: Bool.
        boundary_HW: ``boundary_mask(depth_HW, valid_HW)``.

    Returns:
        Name of each of ``METRICS`` -> value; NaN for ``boundary_abs_rel`` without a boundary.

    Raises:
        DataError: Shapes differ, a mask is not bool, no pixel is valid, or a valid depth or
            prediction is not above 0 and finite.
    """
    _check_masks(valid_HW, boundary_HW)
    if not (pred_HW.ndim == 2 and pred_HW.shape == depth_HW.shape == valid_HW.shape):
        raise DataError(
            f"prediction {tuple(pred_HW.shape)}, depth {tuple(depth_HW.shape)} and valid "
            f"{tuple(valid_HW.shape)} must be (H, W) maps of one size"
        )
    if not bool(valid_HW.any()):
        raise DataError("no pixel of this image has valid depth: leave it out")
    pred_HW, depth_HW = pred_HW.double(), depth_HW.double()
    pred_N, depth_N = pred_HW[valid_HW], depth_HW[valid_HW]
    if not bool(((depth_N > 0) & depth_N.isfinite()).all()):
        raise DataError("a valid depth is not above 0 m and finite: leave it out of valid_HW")
    if not bool(((pred_N > 0) & pred_N.isfinite()).all()):
        raise DataError(
            "a prediction is not above 0 m (or not finite), so its logarithm has no value: clip "
            "it to the protocol's range first"
        )
    error_N = pred_N - depth_N
    log_N = pred_N.log() - depth_N.log()
    ratio_N = torch.maximum(pred_N / depth_N, depth_N / pred_N)
    values = [
        (error_N.abs() / depth_N).mean(),
        (error_N.square() / depth_N).mean(),
        error_N.square().mean().sqrt(),
        log_N.square().mean().sqrt(),
        log_N.abs().mean() / math.log(10),
        log_N.var(correction=0).sqrt() * 100,
        *((ratio_N < 1.25**power).double().mean() for power in (1, 2, 3)),
        ((pred_HW - depth_HW).abs()[boundary_HW] / depth_HW[boundary_HW]).mean(),
    ]
    return dict(zip((metric.name for metric in METRICS), map(float, values), strict=True))


def boundary_mask(depth_HW: Tensor, valid_HW: Tensor) -> Tensor:
    """The valid pixels near a jump of depth.

    Both pixels of each valid pair of neighbours whose log depths differ by more than 0.05,
    dilated 7 x 7, where the whole 7 x 7 around a pixel is valid (so not at holes, nor at the
    picture's or the crop's border).

    Returns:
        (H, W) bool.
    """
    _check_masks(valid_HW)
    log_HW = torch.where(valid_HW, depth_HW.double(), 1.0).log()
    edge_HW = torch.zeros_like(valid_HW)
    for axis in (0, 1):
        length = valid_HW.shape[axis] - 1
        first, second = (valid_HW.narrow(axis, start, length) for start in (0, 1))
        step = log_HW.narrow(axis, 1, length) - log_HW.narrow(axis, 0, length)
        jump = first & second & (step.abs() > BOUNDARY_JUMP)
        edge_HW.narrow(axis, 0, length).logical_or_(jump)
        edge_HW.narrow(axis, 1, length).logical_or_(jump)
    return _dilated(edge_HW, outside=False) & ~_dilated(~valid_HW, outside=True)


class Fit(NamedTuple):
    """How a prediction is aligned: a factor on it, or scale and shift of its inverse."""

    scale: float = 1.0
    shift: float | None = None

    def __call__(self, pred_HW: Tensor, farthest: float) -> Tensor:
        """The aligned prediction in metres, float64.

        What scale and shift bring to or beyond infinity is at ``farthest`` metres.
        """
        if self.shift is None:
            return pred_HW.double() * self.scale
        inverse_HW = self.scale * inverse_of(pred_HW.double()) + self.shift
        return inverse_HW.clamp_min(1 / farthest).reciprocal()


def alignment_fit(pred_HW: Tensor, depth_HW: Tensor, valid_HW: Tensor, kind: Alignment) -> Fit:
    """What aligns a prediction to the truth; needs valid predictions above 0."""
    if kind != "inverse":
        return Fit(alignment_scale(pred_HW, depth_HW, valid_HW, kind))
    _check_masks(valid_HW)
    pred_1N = inverse_of(pred_HW[valid_HW].double())[None]
    truth_1N = depth_HW[valid_HW].double().reciprocal()[None]
    scale_11, shift_11 = least_squares(pred_1N, truth_1N, torch.ones_like(truth_1N))
    return Fit(float(scale_11), float(shift_11))


def alignment_scale(pred_HW: Tensor, depth_HW: Tensor, valid_HW: Tensor, kind: Alignment) -> float:
    """The factor that aligns a prediction to the truth; needs valid predictions above 0."""
    _check_masks(valid_HW)
    if kind == "none":
        return 1.0
    pred_N, depth_N = pred_HW[valid_HW].double(), depth_HW[valid_HW].double()
    if kind == "median":
        return float(_median(depth_N) / _median(pred_N))
    return float((pred_N @ depth_N) / (pred_N @ pred_N))


def _median(x_N: Tensor) -> Tensor:
    """As NumPy's: torch.median takes the lower middle, torch.quantile has a size limit."""
    sorted_N = x_N.sort().values
    return (sorted_N[(len(x_N) - 1) // 2] + sorted_N[len(x_N) // 2]) / 2


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Mean over images of each metric; None where it is NaN (no boundaries) of every image.

    Raises:
        DataError: No rows.
    """
    if not rows:
        raise DataError("no image to average over: the data set is empty, or has no valid depth")
    means: dict[str, float | None] = {}
    for name in (metric.name for metric in METRICS):
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[name] = math.fsum(values) / len(values) if values else None
    return means


def _check_masks(*masks: Tensor) -> None:
    """Whether they choose pixels: whole numbers would be indices."""
    for mask in masks:
        if mask.dtype != torch.bool:
            raise DataError(f"a mask of pixels is of {mask.dtype}, expected torch.bool")


def _dilated(mask_HW: Tensor, *, outside: bool) -> Tensor:
    padded = F.pad(mask_HW[None, None].float(), (BOUNDARY_RADIUS,) * 4, value=float(outside))
    return F.max_pool2d(padded, 2 * BOUNDARY_RADIUS + 1, stride=1)[0, 0] > 0

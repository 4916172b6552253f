"""AbsRel and its companions during training, set by set, over all processes.

At the training's output size, without crop or flip: to choose weights by, not to publish
(``clipdepth eval`` measures by the benchmarks' protocols).

Axes: B views, H W a map's size, K its pixels, M metrics, S sets,
X columns. Depths in metres.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.maps.alignment import inverse_of, least_squares
from clipdepth_plugin.training.confidence_scale import (
    best_factor,
    calibration_errors,
    scale_shares,
)
from clipdepth_plugin.training.terms.term import or_one, wide

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.decoders.readout import DepthEstimate
    from clipdepth_plugin.training.batches import FeatureBatch, FeatureSource

Weights = Literal["raw", "ema"]
METRICS = ("abs_rel", "rmse", "delta1", "abs_rel_aligned")
RELATIVE_METRICS = ("inverse_error",)
"""Those of heads of relative depth, in place of ``METRICS``."""
OF_EACH_SET = ("abs_rel", "abs_rel_aligned", "inverse_error", "calibration_error")
"""Those that are given of each set, too, where there are several."""

_SMALLEST = 1e-3


@dataclass(frozen=True)
class Validation:
    """What one pass over the validation data gave.

    Attributes:
        metrics: Name of ``METRICS`` (or ``RELATIVE_METRICS``) -> mean over sets of each set's mean
            over images; ``<metric>/<set>`` -> a set's own, where there are several. With
            confidence also ``confidence_scale``, a factor on the head's, and
            ``calibration_error`` under it.
        images: How many had valid depth.
        pictures: (P, 1, H, W) predicted metres of this process's first samples, on the CPU; for a
            head of relative depth, inverse depth aligned to the truth's.
        truth: (P, 1, H, W) their true metres, or inverse depth; 0 = invalid.
    """

    metrics: dict[str, float]
    images: int
    pictures: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Best:
    """The best weights so far, their step and what they gave in validation.

    Without a validation there are no metrics, for heads of relative depth no AbsRel.
    """

    abs_rel: float | None = None
    weights: Weights = "raw"
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def image_errors(pred_B1HW: Tensor, depth_B1HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """AbsRel, RMSE in metres, delta < 1.25 and median-aligned AbsRel of each image.

    Aligned: times median(truth) / median(prediction), as ``clipdepth eval --align median``.

    Returns:
        (B, M) float64 in the order of ``METRICS``; NaN for images without valid depth.
    """
    pred_BK = wide(pred_B1HW.flatten(1).float()).clamp_min(_SMALLEST)
    valid_BK = valid_B1HW.flatten(1)
    depth_BK = torch.where(valid_BK, wide(depth_B1HW.flatten(1)), 1.0)
    error_BK = pred_BK - depth_BK
    ratio_BK = torch.maximum(pred_BK / depth_BK, depth_BK / pred_BK)
    count_B = valid_BK.sum(dim=1)
    scale_B1 = _median(depth_BK, valid_BK) / _median(pred_BK, valid_BK)

    def mean(x_BK: Tensor) -> Tensor:
        return torch.where(valid_BK, x_BK, 0.0).sum(dim=1) / count_B

    columns = (
        mean(error_BK.abs() / depth_BK),
        mean(error_BK.square()).sqrt(),
        mean(wide((ratio_BK < 1.25).float())),
        mean((pred_BK * scale_B1 - depth_BK).abs() / depth_BK),
    )
    return torch.stack(columns, dim=1)


def aligned_inverse(pred_B1HW: Tensor, inverse_B1HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """(B, 1, H, W) float64: inverse of relative depth in the scale and shift of true inverse depth.

    Those with the least squared error over each picture's valid pixels.
    """
    valid_BK = valid_B1HW.flatten(1)
    pred_BK = inverse_of(wide(pred_B1HW.flatten(1).float()))
    fit = least_squares(pred_BK, wide(inverse_B1HW.flatten(1)), wide(valid_BK.float()))
    return (fit[0] * pred_BK + fit[1]).view(pred_B1HW.shape)


def relative_errors(aligned_B1HW: Tensor, inverse_B1HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """``RELATIVE_METRICS`` of each image: the error of aligned inverse depth.

    ``inverse_error``: mean |aligned - truth| over the truth's mean absolute deviation from its
    median: 0 is perfect, about 1 a constant, whatever the truth's own scale and shift.

    Returns:
        (B, 1) float64; 0 for a constant truth, NaN for images without valid depth.
    """
    valid_BK, truth_BK = valid_B1HW.flatten(1), wide(inverse_B1HW.flatten(1))
    error_BK = (aligned_B1HW.flatten(1) - truth_BK).abs()
    deviation_BK = (truth_BK - _median(truth_BK, valid_BK)).abs()
    sums = [torch.where(valid_BK, x_BK, 0.0).sum(dim=1) for x_BK in (error_BK, deviation_BK)]
    found_B = torch.where(valid_BK.any(dim=1), sums[0] / or_one(sums[1]), torch.nan)
    return found_B[:, None]


def _median(x_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """(B, 1) medians of what is valid, as NumPy's: the mean of the two in the middle."""
    sorted_BK = x_BK.masked_fill(~valid_BK, torch.inf).sort(dim=1).values
    last_B1 = (valid_BK.sum(dim=1, keepdim=True) - 1).clamp_min(0)
    middle_B2 = torch.cat([last_B1 // 2, (last_B1 + 1) // 2], dim=1)
    return sorted_BK.gather(1, middle_B2).mean(dim=1, keepdim=True)


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    model: nn.Module,
    source: FeatureSource,
    size: tuple[int, int],
    sets: Sequence[str],
    pictures: int = 0,
    doing: Callable[[int, int], object] = lambda *_: None,
    *,
    calibrate: bool = True,
) -> Validation:
    """Measures the model as it is, in evaluation mode; to be called in every process.

    ``sets`` names the sets that the source's batches number; each weighs the same. ``doing`` is
    called with the numbers of batches done and of all, where these are known. ``calibrate`` fits
    the factor of a confidence.
    """
    was_training = model.training
    model.eval()
    sums_SX: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    total, inverse = None, False
    with contextlib.suppress(TypeError):  # a stream has no length
        total = len(source)
    for number, (batch, counts) in enumerate(_together(accelerator, source.batches(0)), 1):
        estimate: DepthEstimate = model(batch.plain_runs, size)
        pred_B1HW = estimate.depth / batch.scale_B[:, None, None, None]
        if batch.inverse:
            pred_B1HW = aligned_inverse(pred_B1HW, batch.depth_B1HW, batch.valid_B1HW)
        inverse = batch.inverse
        if counts:
            rows_BX = _columns(pred_B1HW, estimate.log_scale, batch)
            counted_B = batch.valid_B1HW.flatten(1).any(dim=1)
            mine = [counted_B & (batch.parts_B == part) for part in range(len(sets))]
            added_SX = torch.stack([rows_BX[of_set_B].sum(dim=0) for of_set_B in mine])
            sums_SX = added_SX if sums_SX is None else sums_SX + added_SX
        if total is not None:
            doing(number, total)
        first = first or (pred_B1HW[:pictures].float().cpu(), batch.depth_B1HW[:pictures].cpu())
    model.train(was_training)
    if sums_SX is None or first is None:
        raise TrainingError("data.validation: has no images")
    pooled_SX: Tensor = accelerator.reduce(sums_SX, reduction="sum")
    images_S = pooled_SX[:, 0].tolist()
    empty = [name for name, images in zip(sets, images_S, strict=True) if not images]
    if empty:
        raise TrainingError(
            f"data.validation: no image of {', '.join(empty)} has valid depth; check root, split, "
            "range"
        )
    means_SX = pooled_SX[:, 1:] / pooled_SX[:, :1]
    names = RELATIVE_METRICS if inverse else METRICS
    metrics = _metrics(means_SX.cpu(), sets, names, calibrate=calibrate)
    return Validation(metrics, int(sum(images_S)), *first)


def _columns(pred_B1HW: Tensor, log_scale_B1HW: Tensor | None, batch: FeatureBatch) -> Tensor:
    """(B, X) numbers of each image whose means are asked for: 1, the metrics, confidence's."""
    truth = (batch.depth_B1HW, batch.valid_B1HW)
    errors_BM = (relative_errors if batch.inverse else image_errors)(pred_B1HW, *truth)
    columns = [torch.ones_like(errors_BM[:, :1]), errors_BM]
    if log_scale_B1HW is not None:
        columns.append(scale_shares(log_scale_B1HW, pred_B1HW, *truth).flatten(1))
    return torch.cat(columns, dim=1)


def _metrics(
    means_SX: Tensor, sets: Sequence[str], names: Sequence[str], *, calibrate: bool
) -> dict[str, float]:
    """``Validation.metrics`` from each set's means of ``_columns`` behind the first."""
    values = dict(zip(names, means_SX.T, strict=False))
    metrics = {}
    if means_SX.shape[1] > len(names):
        shares_S2E = means_SX[:, len(names) :].unflatten(1, (2, -1))
        factor = best_factor(shares_S2E) if calibrate else 1.0
        metrics["confidence_scale"] = factor
        values["calibration_error"] = calibration_errors(shares_S2E, factor)
    metrics |= {name: float(value_S.mean()) for name, value_S in values.items()}
    if len(sets) > 1:
        metrics |= {
            f"{name}/{one}": float(value)
            for name in OF_EACH_SET
            if name in values
            for one, value in zip(sets, values[name], strict=True)
        }
    return metrics


def _together(
    accelerator: Accelerator, batches: Iterator[FeatureBatch]
) -> Iterator[tuple[FeatureBatch, bool]]:
    """Batches, as many in every process, which sharded models and batch norms wait for.

    A process that has no more repeats its last one.
    """
    last: FeatureBatch | None = None
    while True:
        batch = next(batches, None)
        left = torch.tensor(float(batch is not None), device=accelerator.device)
        if float(accelerator.reduce(left, reduction="sum")) == 0:
            return
        last = batch or last
        if last is None:
            raise TrainingError("data.validation: fewer samples than there are processes")
        yield last, batch is not None

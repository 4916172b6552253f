"""evaluate(): a predictor on a data set, by a protocol, beside a constant depth.

Axes: H W a picture's own size, N pixels. Depths in metres.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.calibration import (
    Calibration,
    PixelSample,
    calibrate,
    take_pixels,
)
from clipdepth_plugin.evaluation.metrics import (
    ALIGNMENTS,
    Alignment,
    alignment_scale,
    boundary_mask,
    image_metrics,
    mean_metrics,
)
from clipdepth_plugin.evaluation.predictors import HeadPredictor, Predictor, predict_samples
from clipdepth_plugin.evaluation.protocols import Protocol
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

if TYPE_CHECKING:
    from clipdepth_plugin.data import Sample

logger = logging.getLogger(__name__)

BASELINE_PIXELS = 1000

BaselineKind = Literal["test-median", "train-median"]
ByAlignment = dict[Alignment, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A constant depth to compare with.

    Attributes:
        kind: ``train-median``: the median depth of the training set, a predictor that ignores the
            picture. ``test-median``: that of the test set itself, which no predictor may know, so
            a stricter comparison of the raw figures.
        depth: The constant.
    """

    kind: BaselineKind
    depth: float


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One picture's figures.

    Attributes:
        index: Its index in the data set.
        name: Its name.
        pixels: Number of pixels that count.
        scales: Alignment -> the factor on the prediction.
        metrics: Alignment -> metric -> value.
        baseline: The same of the constant depth, aligned in the same way.
    """

    index: int
    name: str
    pixels: int
    scales: dict[Alignment, float]
    metrics: ByAlignment
    baseline: ByAlignment


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The figures of a data set.

    Attributes:
        protocol: How it was measured.
        rows: One for each picture.
        means: Alignment -> metric -> mean over pictures.
        baseline: The constant depth.
        baseline_means: As ``means``, of the constant.
        skipped: Names of pictures without a pixel that counts and was shown to the tower.
        calibration: Of the raw predictions' confidence; None without one.
    """

    protocol: Protocol
    rows: tuple[ImageRow, ...]
    means: ByAlignment
    baseline: Baseline
    baseline_means: ByAlignment
    skipped: tuple[str, ...]
    calibration: Calibration | None = None

    def ranked(self, alignment: Alignment = "none", metric: str = "abs_rel") -> list[ImageRow]:
        """The rows, smallest value first."""
        return sorted(self.rows, key=lambda row: row.metrics[alignment][metric])


def evaluate(
    predict: Predictor | DepthPlugin,
    dataset: Any,
    protocol: Protocol,
    *,
    batch_size: int = 1,
    baseline: Baseline | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> EvaluationResult:
    """Measures a predictor.

    Predictions are made at the truth's size, averaged with the mirrored picture's where the
    protocol says so, scale-aligned (or not), then clipped to the protocol's range.

    Args:
        predict: A predictor, or a plug-in whose tower says how pictures are prepared.
        dataset: Of ``Sample``: map style, or iterable (which is then read twice).
        protocol: Which pixels count.
        batch_size: Pictures in one tower pass.
        baseline: The constant to compare with; None takes the test set's median.
        advance: Called with the number of pictures done since the last call.

    Raises:
        DataError: No picture has valid depth, a picture does not fit the protocol, or a
            prediction is not finite or of another size.
    """
    predictor = HeadPredictor(predict) if isinstance(predict, DepthPlugin) else predict
    if baseline is None:
        baseline = Baseline("test-median", median_depth(dataset, protocol))
    rows: list[ImageRow] = []
    pixels: list[PixelSample] = []
    skipped: list[str] = []
    start = unseen = 0
    for samples in _batches(iterate(dataset), batch_size):
        indices = range(start, start + len(samples))
        start += len(samples)
        valid = [protocol.valid(s.depth_1HW[0], s.name) for s in samples]
        kept = [i for i, valid_HW in enumerate(valid) if valid_HW.any()]
        skipped += [s.name for i, s in enumerate(samples) if i not in kept]
        maps = predict_samples(predictor, [samples[i] for i in kept], protocol)
        for i, predicted in zip(kept, maps, strict=True):
            seen_HW = valid[i] & predicted.metres_HW.isfinite()
            unseen += int(valid[i].sum() - seen_HW.sum())
            valid[i] = seen_HW
            if not seen_HW.any():
                skipped.append(samples[i].name)
                continue
            pred_HW = _positive(predicted.metres_HW, valid[i], protocol)
            rows.append(_row(indices[i], samples[i], pred_HW, valid[i], protocol, baseline))
            if (confidence_HW := predicted.confidence_HW) is not None:
                depth_HW = samples[i].depth_1HW[0]
                pixels.append(take_pixels(confidence_HW, pred_HW, depth_HW, valid[i]))
        advance(len(samples))
    if unseen:
        logger.warning(
            "%d pixels with depth are not measured: the tower was not shown them, as the head's "
            "resize rule (config.resize) crops pictures",
            unseen,
        )
    means: ByAlignment = {a: mean_metrics(row.metrics[a] for row in rows) for a in ALIGNMENTS}
    of_baseline: ByAlignment = {
        a: mean_metrics(row.baseline[a] for row in rows) for a in ALIGNMENTS
    }
    calibration = calibrate(pixels) if pixels else None
    return EvaluationResult(
        protocol, tuple(rows), means, baseline, of_baseline, tuple(skipped), calibration
    )


def median_depth(dataset: Any, protocol: Protocol) -> float:
    """Median depth of a data set in metres, every picture weighing the same.

    Of each picture 1000 of the pixels that count are taken, evenly spaced.

    Raises:
        DataError: No picture has valid depth.
    """
    taken: list[Tensor] = []
    for sample in iterate(dataset):
        depth_HW = sample.depth_1HW[0]
        depth_N = depth_HW[protocol.valid(depth_HW, sample.name)]
        if len(depth_N):
            even = torch.linspace(0, len(depth_N) - 1, BASELINE_PIXELS, dtype=torch.float64)
            taken.append(depth_N[even.round().long()])
    if not taken:
        raise DataError("no picture of the data set has depth in the protocol's range and crop")
    return float(torch.cat(taken).median())


def iterate(dataset: Any) -> Iterator[Sample]:
    """The samples of a map-style or iterable data set, in order."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)


def _positive(pred_HW: Tensor, valid_HW: Tensor, protocol: Protocol) -> Tensor:
    """Above 0 everywhere: a median or a logarithm needs a value where no pixel counts, too."""
    return torch.where(valid_HW, pred_HW, protocol.low).clamp_min(protocol.low)


def _row(
    index: int,
    sample: Sample,
    pred_HW: Tensor,
    valid_HW: Tensor,
    protocol: Protocol,
    baseline: Baseline,
) -> ImageRow:
    depth_HW = sample.depth_1HW[0]
    boundary_HW = boundary_mask(depth_HW.double(), valid_HW)
    constant_HW = torch.full_like(depth_HW, baseline.depth)
    scales: list[dict[Alignment, float]] = []
    figures: list[ByAlignment] = []
    for map_HW in (pred_HW, constant_HW):
        scale = {a: alignment_scale(map_HW, depth_HW, valid_HW, a) for a in ALIGNMENTS}
        scales.append(scale)
        figures.append({})
        for alignment, factor in scale.items():
            clipped_HW = (map_HW.double() * factor).clamp(protocol.low, protocol.high)
            figures[-1][alignment] = image_metrics(clipped_HW, depth_HW, valid_HW, boundary_HW)
    return ImageRow(
        index, sample.name, int(valid_HW.sum()), scales[0], metrics=figures[0], baseline=figures[1]
    )


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while batch := list(islice(rest, size)):
        yield batch

"""evaluate(): a predictor on a data set, by a protocol, beside a constant depth.

Axes: H W a picture's own size, N pixels. Depths in metres.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from clipdepth_plugin.arguments import check_type, parse_count
from clipdepth_plugin.data.sample import Sample, check_metres
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.calibration import Calibration, calibrate, take_pixels
from clipdepth_plugin.evaluation.metrics import (
    ALIGNMENTS,
    RELATIVE_ALIGNMENTS,
    Fit,
    alignment_fit,
    boundary_mask,
    image_metrics,
    mean_metrics,
)
from clipdepth_plugin.evaluation.predictors import (
    HeadPredictor,
    Prediction,
    Predictor,
    is_relative,
    predict_samples,
)
from clipdepth_plugin.evaluation.protocols import Alignment, Protocol
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

logger = logging.getLogger(__name__)

BASELINE_PIXELS = 1000

Means = dict[Alignment, dict[str, float | None]]
"""Alignment -> metric -> mean over pictures; None if no picture has the metric."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A constant depth to compare with.

    Attributes:
        kind: ``train-median``: the median depth of the training set, a predictor that ignores the
            picture. ``test-median``: that of the test set itself, which no predictor may know, so
            a stricter comparison of the raw figures.
        depth: The constant in metres.
        means: Its figures, aligned as the predictions'.
    """

    kind: Literal["test-median", "train-median"]
    depth: float
    means: Means = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One picture's figures.

    Attributes:
        index: Its index in the data set.
        name: Its name.
        pixels: Number of pixels that count.
        fits: Alignment -> what was done to the prediction.
        metrics: Alignment -> metric -> value.
        baseline: The same of the constant depth, aligned in the same way.
    """

    index: int
    name: str
    pixels: int
    fits: dict[Alignment, Fit]
    metrics: dict[Alignment, dict[str, float]]
    baseline: dict[Alignment, dict[str, float]]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The figures of a data set.

    Attributes:
        protocol: How it was measured.
        rows: One for each picture.
        means: The mean figures of each alignment that was measured.
        baseline: The constant depth and its figures.
        skipped: Names of pictures without a pixel that counts and was shown to the tower.
        calibration: Of the raw predictions' confidence; None without one.
        relative: Whether the predictions are relative depth, which has no raw figures.
        labels: Whose labels the depths are that it was measured against; None: they are truth.
    """

    protocol: Protocol
    rows: tuple[ImageRow, ...]
    means: Means
    baseline: Baseline
    skipped: tuple[str, ...]
    calibration: Calibration | None
    relative: bool = False
    labels: str | None = None

    @property
    def alignments(self) -> tuple[Alignment, ...]:
        """Those that were measured."""
        return tuple(self.means)


def evaluate(
    predict: Predictor | DepthPlugin,
    dataset: Iterable[Sample],
    protocol: Protocol,
    *,
    batch_size: int = 1,
    baseline: Baseline | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> EvaluationResult:
    """Measures a predictor.

    Predictions are made at the truth's size, averaged with the mirrored picture's where the
    protocol says so, scale-aligned (or not), then clipped to the protocol's range. Relative depth
    is measured only with scale and shift of inverse depth aligned.

    Args:
        predict: A predictor, or a plug-in whose tower says how pictures are prepared.
        dataset: Read twice where no baseline is given.
        protocol: Which pixels count.
        batch_size: Pictures in one tower pass.
        baseline: The constant to compare with; None takes the test set's median.
        advance: Called with the number of pictures done since the last call.

    Raises:
        DataError: No picture has valid depth, a picture does not fit the protocol, or a
            prediction is not finite or of another size.
    """
    check_type(protocol, Protocol, "protocol", DataError)
    check_type(dataset, Iterable, "dataset", DataError)
    check_type(predict, Callable, "predict", DataError)  # type: ignore[arg-type]
    batch_size = parse_count(batch_size, "batch_size")
    predictor = HeadPredictor(predict) if isinstance(predict, DepthPlugin) else predict
    if baseline is None:
        baseline = Baseline("test-median", median_depth(dataset, protocol))
    relative = is_relative(predictor)
    alignments = RELATIVE_ALIGNMENTS if relative else ALIGNMENTS
    rows: list[ImageRow] = []
    pixels: list[Tensor] = []
    skipped: list[str] = []
    unseen = 0
    for index, sample, predicted, valid_HW in _predicted(predictor, dataset, protocol, batch_size):
        advance(1)
        seen_HW = valid_HW
        if predicted is not None:
            seen_HW = valid_HW & predicted.depth_HW.isfinite()
            unseen += int(valid_HW.sum() - seen_HW.sum())
        if predicted is None or not seen_HW.any():
            skipped.append(sample.name)
            continue
        pred_HW = predicted.depth_HW.clamp_min(protocol.low)
        rows.append(_row(index, sample, pred_HW, seen_HW, protocol, baseline, alignments))
        if (confidence_HW := predicted.confidence_HW) is not None:
            pixels.append(take_pixels(confidence_HW, pred_HW, sample.depth_1HW[0], seen_HW))
    if unseen:
        logger.warning(
            "%d pixels with depth are not measured: the tower was not shown them, as the head's "
            "resize rule (config.resize) crops pictures, or it was shown one colour",
            unseen,
        )
    constant: Means = {a: mean_metrics([row.baseline[a] for row in rows]) for a in alignments}
    return EvaluationResult(
        protocol=protocol,
        rows=tuple(rows),
        means={a: mean_metrics([row.metrics[a] for row in rows]) for a in alignments},
        baseline=replace(baseline, means=constant),
        skipped=tuple(skipped),
        calibration=calibrate(pixels) if pixels else None,
        relative=relative,
        labels=getattr(dataset, "labels", None),
    )


def _predicted(
    predictor: Predictor, dataset: Iterable[Sample], protocol: Protocol, batch_size: int
) -> Iterator[tuple[int, Sample, Prediction | None, Tensor]]:
    """Each picture with its prediction (None if no pixel of it counts) and its valid pixels."""
    indexed = enumerate(dataset)
    while batch := list(islice(indexed, batch_size)):
        for _, sample in batch:
            _check_sample(sample)
        valid = [protocol.valid(sample.depth_1HW[0], sample.name) for _, sample in batch]
        kept = [sample for (_, sample), one_HW in zip(batch, valid, strict=True) if one_HW.any()]
        maps = iter(predict_samples(predictor, kept, protocol))
        for (index, sample), valid_HW in zip(batch, valid, strict=True):
            yield index, sample, next(maps) if valid_HW.any() else None, valid_HW


def _check_sample(sample: Sample) -> None:
    check_type(sample, Sample, "the data set's sample", DataError)
    check_metres(sample)


def median_depth(
    dataset: Iterable[Sample],
    protocol: Protocol,
    advance: Callable[[int], object] = lambda _: None,
) -> float:
    """Median depth of a data set in metres, over 1000 pixels of each picture that has depth.

    ``advance`` is as for ``evaluate``.

    Raises:
        DataError: No picture has valid depth.
    """
    taken: list[Tensor] = []
    for sample in dataset:
        advance(1)
        _check_sample(sample)
        depth_HW = sample.depth_1HW[0]
        depth_N = depth_HW[protocol.valid(depth_HW, sample.name)]
        if len(depth_N):
            even = torch.linspace(0, len(depth_N) - 1, BASELINE_PIXELS, dtype=torch.float64)
            taken.append(depth_N[even.round().long()])
    if not taken:
        raise DataError("no picture of the data set has depth in the protocol's range and crop")
    return float(torch.cat(taken).median())


def _row(
    index: int,
    sample: Sample,
    pred_HW: Tensor,
    valid_HW: Tensor,
    protocol: Protocol,
    baseline: Baseline,
    alignments: Sequence[Alignment],
) -> ImageRow:
    depth_HW = sample.depth_1HW[0]
    boundary_HW = boundary_mask(depth_HW.double(), valid_HW)
    constant_HW = torch.full_like(depth_HW, baseline.depth)
    fits: dict[Alignment, Fit] = {}
    farthest = farthest_depth(protocol, depth_HW, valid_HW)
    metrics: dict[Alignment, dict[str, float]] = {}
    constant: dict[Alignment, dict[str, float]] = {}
    for alignment in alignments:
        for map_HW, found, figures in ((pred_HW, fits, metrics), (constant_HW, {}, constant)):
            found[alignment] = alignment_fit(map_HW, depth_HW, valid_HW, alignment)
            scaled_HW = found[alignment](map_HW, farthest)
            clipped_HW = scaled_HW.clamp(protocol.low, protocol.high)
            figures[alignment] = image_metrics(clipped_HW, depth_HW, valid_HW, boundary_HW)
    return ImageRow(index, sample.name, int(valid_HW.sum()), fits, metrics, constant)


def farthest_depth(protocol: Protocol, depth_HW: Tensor, valid_HW: Tensor) -> float:
    """Metres of what an alignment brings to infinity: the protocol's, else the picture's bound."""
    return float(depth_HW[valid_HW].max()) if protocol.high is None else protocol.high

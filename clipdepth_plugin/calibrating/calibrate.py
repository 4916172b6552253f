"""calibrate(): a new head whose metres are those that were measured.

Axes: P pictures, K points of a picture.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.calibrating.choosing import Asked, Model, When, choose, helps, refit
from clipdepth_plugin.calibrating.line import Line
from clipdepth_plugin.calibrating.readings import Points, Readings
from clipdepth_plugin.calibrating.spread import is_right, judged
from clipdepth_plugin.errors import DataError, HeadMismatchError, quoted
from clipdepth_plugin.evaluation.calibration import calibrate as calibration_of
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.metric_calibration import SCALES, MetricCalibration


@dataclass(frozen=True)
class Figures:
    """Of all points, those left out of the fit, too; each picture weighs the same.

    Attributes:
        abs_rel: Mean of abs(depth - truth) / truth.
        delta1: Share within a factor of 1.25.
        calibration_error: Expected calibration error of the confidence; None without one.
    """

    abs_rel: float
    delta1: float
    calibration_error: float | None


@dataclass(frozen=True)
class Calibrated:
    """What ``calibrate`` gives.

    Attributes:
        head: The new head; it shares its weights with the old one.
        record: ``head.config.calibration``.
        confidence_scale: Of the old head, and of the new one.
        before: Figures of the old head.
        after: Of the new one, each group by a fit without it; None where there is but one group.
        better: Whether AbsRel of the groups is significantly smaller after.
        no_slope: Why no slope was fitted; None: it was.
        no_confidence: Why the confidence was not fitted; None: it was.
        readings: The points.
    """

    head: DepthHead
    record: MetricCalibration
    confidence_scale: tuple[float, float]
    before: Figures
    after: Figures | None
    better: bool
    no_slope: str | None
    no_confidence: str | None
    readings: Readings


def calibrate(
    head: DepthHead,
    readings: Readings,
    *,
    data: str = "",
    slope: When = "auto",
    confidence: When = "auto",
    tower_hashes: Mapping[str, str] | None = None,
) -> Calibrated:
    """Fits scale, slope and confidence of a head to measured depths.

    A head that is calibrated already is fitted anew: the new calibration takes the old one's place.

    Args:
        head: Stays as it is.
        readings: Of this head, ``uncalibrated``, by ``read_points``.
        data: What was measured, for the record.
        slope: Whether to fit a slope in log depth.
        confidence: Whether to fit ``confidence_scale``.
        tower_hashes: Of the tower that it was read on, where that is another than the one the head
            was trained on: the new head is for that tower.

    Raises:
        DataError: The points do not determine what is asked for, or are in another unit.
    """
    check_type(head, DepthHead, "head", HeadMismatchError)
    check_type(readings, Readings, "readings", DataError)
    for name, when in (("slope", slope), ("confidence", confidence)):
        if when not in get_args(When):
            raise DataError(f"{name}: got {quoted(when)}, expected {', '.join(get_args(When))}")
    points, before = readings.points, head.config.calibration
    asked = Asked(slope, confidence, head.config.confidence_scale)
    model = choose(points, asked)
    _check_scale(model.line)
    old = Model(_old_line(before), asked.factor, None, None)
    figures = _figures(points, [(points, old)])
    after, better = _cross_validated(points, asked, old)
    record = _record(readings, model, data, (figures, after))
    changes: dict[str, Any] = {"calibration": record, "confidence_scale": model.factor}
    if tower_hashes is not None:
        hashes = {"tower_hashes": dict(tower_hashes)}
        changes["provenance"] = head.config.provenance.model_copy(update=hashes)
    new = copy.copy(head)
    new.config = head.config.model_copy(update=changes)
    return Calibrated(
        head=new,
        record=record,
        confidence_scale=(asked.factor, model.factor),
        before=figures,
        after=after,
        better=better,
        no_slope=model.no_slope,
        no_confidence=model.no_confidence,
        readings=readings,
    )


def _old_line(before: MetricCalibration | None) -> Line:
    if before is None:
        return Line()
    return Line(math.log(before.scale), before.slope, math.log(before.pivot))


def _check_scale(line: Line) -> None:
    scale = math.exp(line.log_scale)
    if not SCALES[0] <= scale <= SCALES[1]:
        raise DataError(
            f"the points ask for {scale:.4g} times the head's depth, which is no calibration: are "
            "they in metres, and of these pictures?"
        )


def _figures(points: Points, parts: list[tuple[Points, Model]]) -> Figures:
    """Of parts of the points, each by a model."""
    errors, right, pixels = [], [], []
    for held, model in parts:
        weight_PK = held.valid_PK / held.valid_PK.sum(dim=1, keepdim=True)
        errors.append(_abs_rel(held, model.line))
        right.append((is_right(held, model.line) * weight_PK).sum(dim=1))
        if points.log_spread_PK is not None:
            pixels += judged(held, model.line, model.factor)
    return Figures(
        abs_rel=float(torch.cat(errors).mean()),
        delta1=float(torch.cat(right).mean()),
        calibration_error=calibration_of(pixels).calibration_error if pixels else None,
    )


def _abs_rel(points: Points, line: Line) -> Tensor:
    """(P,) of each picture."""
    metres_PK, truth_PK = line.log_metres(points.log_pred_PK).exp(), points.log_true_PK.exp()
    error_PK = (metres_PK - truth_PK).abs() / truth_PK * points.valid_PK
    return error_PK.sum(dim=1) / points.valid_PK.sum(dim=1)


def _cross_validated(points: Points, asked: Asked, old: Model) -> tuple[Figures | None, bool]:
    groups = points.groups
    if len(groups) < 2:
        return None, False
    parts, gains = [], []
    for rest, held in map(points.split, groups):
        model = choose(rest, asked, share=1 - 1 / len(groups))
        parts.append((held, model))
        errors = (_abs_rel(held, one.line).mean() for one in (old, model))
        gains.append(float(next(errors) - next(errors)))
    return _figures(points, parts), helps(gains)


def _record(
    readings: Readings, model: Model, data: str, figures: tuple[Figures, Figures | None]
) -> MetricCalibration:
    points, line = readings.points, model.line
    sloped, (before, after) = model.no_slope is None, figures
    errors = _standard_errors(points, model)
    return MetricCalibration(
        scale=math.exp(line.log_scale),
        slope=line.slope,
        pivot=math.exp(line.pivot) if sloped else 1.0,
        scale_error=errors[0],
        slope_error=errors[1] if sloped else None,
        confidence_error=errors[2] if model.no_confidence is None else None,
        data=data,
        points=int(points.valid_PK.sum()),
        left_out=line.left_out,
        pictures=len(readings.names),
        groups=len(points.groups),
        measured=readings.measured,
        abs_rel=None if after is None else (before.abs_rel, after.abs_rel),
    )


def _standard_errors(points: Points, model: Model) -> tuple[float | None, ...]:
    """Of log scale, slope and log factor: the jackknife's, a group left out at a time."""
    groups = points.groups
    if len(groups) < 2:
        return None, None, None
    others = [refit(points.split(group)[0], model) for group in groups]
    values = [(one.line.log_scale, one.line.slope, math.log(one.factor)) for one in others]
    share = math.sqrt((len(groups) - 1) / len(groups))
    return tuple(
        share * math.sqrt(sum((x - statistics.fmean(column)) ** 2 for x in column))
        for column in zip(*values, strict=True)
    )

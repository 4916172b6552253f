"""The factor on a head's predicted error scale, from measured points.

Axes: P pictures, K points of a picture, N points, E bins of the log of the scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipdepth_plugin.calibrating.groups import FEWEST
from clipdepth_plugin.calibrating.line import Line
from clipdepth_plugin.calibrating.readings import Points
from clipdepth_plugin.decoders.readout import CONFIDENT_FACTOR, confidence_of
from clipdepth_plugin.evaluation.calibration import take_pixels
from clipdepth_plugin.training.confidence_scale import best_factor, scale_shares

POINTS, OF_EACH = 100, 10
"""Points that determine a probability; and so many of them right, so many wrong."""

FACTORS = (0.055, 50.0)
"""What the points may ask for; ``training.confidence_scale`` looks a little further."""


def log_spread(points: Points, line: Line, factor: float) -> Tensor:
    """(P, K) log scale of the error of the calibrated log depth."""
    assert points.log_spread_PK is not None
    return points.log_spread_PK + math.log(line.slope * factor)


def is_right(points: Points, line: Line) -> Tensor:
    """(P, K): whether a calibrated depth is within a factor of 1.25 of the truth."""
    error_PK = (line.log_metres(points.log_pred_PK) - points.log_true_PK).abs()
    return error_PK < math.log(CONFIDENT_FACTOR)


def no_confidence(points: Points, line: Line, share: float = 1.0) -> str | None:
    """Why the factor can't be known from these points; None where it can.

    ``share``: of all points, where these are what a group was left out of.
    """
    if points.log_spread_PK is None:
        return "this head predicts no confidence"
    count, groups = int(points.valid_PK.sum()), len(points.groups)
    if count < POINTS * share or groups < FEWEST * share:
        return (
            f"{count} points in {groups} independent groups of pictures; it takes {POINTS} points "
            f"in {FEWEST}"
        )
    right_PK = is_right(points, line)
    right, wrong = (int((points.valid_PK & x_PK).sum()) for x_PK in (right_PK, ~right_PK))
    if min(right, wrong) < OF_EACH * share:
        return (
            f"{right} points are within a factor of {CONFIDENT_FACTOR} of the truth, {wrong} are "
            f"not; it takes {OF_EACH} of each"
        )
    return None


def fit_factor(points: Points, line: Line, before: float) -> float:
    """The factor in place of ``before``, under which right and wrong points are likeliest."""
    maps = (
        log_spread(points, line, before),
        line.log_metres(points.log_pred_PK).exp(),
        points.log_true_PK.exp(),
        points.valid_PK,
    )
    shares_P2E = scale_shares(*(x_PK[:, None, None] for x_PK in maps))
    return before * best_factor(shares_P2E.mean(dim=0, keepdim=True))


def log_scores(points: Points, line: Line, factor: float) -> Tensor:
    """(P,) mean log probability that each picture's points are right or wrong, as they are."""
    sure_PK = confidence_of(log_spread(points, line, factor)).clamp(1e-9, 1 - 1e-9)
    score_PK = torch.where(is_right(points, line), sure_PK, 1 - sure_PK).log()
    return (score_PK * points.valid_PK).sum(dim=1) / points.valid_PK.sum(dim=1)


def judged(points: Points, line: Line, factor: float) -> list[Tensor]:
    """Of each picture what ``evaluation.calibration.calibrate`` takes."""
    sure_PK = confidence_of(log_spread(points, line, factor))
    metres = (line.log_metres(points.log_pred_PK).exp(), points.log_true_PK.exp())
    return [
        take_pixels(*(x_K[None] for x_K in rows))
        for rows in zip(sure_PK, *metres, points.valid_PK, strict=True)
    ]

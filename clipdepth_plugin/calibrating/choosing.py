"""What is fitted: a scale, and slope and confidence where points determine them and they help.

All that is chosen is chosen from the points given, so that a fold of a cross-validation chooses
anew, without the group that it leaves out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from clipdepth_plugin.calibrating.groups import FEWEST
from clipdepth_plugin.calibrating.line import Line, fit, fit_part, span
from clipdepth_plugin.calibrating.readings import Points
from clipdepth_plugin.calibrating.spread import FACTORS, fit_factor, log_scores, no_confidence
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.metric_calibration import SLOPES, student

When = Literal["auto", "always", "never"]
"""``auto``: where the points determine it and it is worth it for groups that are left out (a slope,
which is one number more: significantly). ``always``: refused where they don't determine it."""

SPAN = 1.5
"""Farthest over nearest depth below which a slope is not determined."""

NOT_ASKED = "not asked for"


@dataclass(frozen=True)
class Asked:
    """What the user wants fitted; ``factor`` is the head's confidence scale before."""

    slope: When = "auto"
    confidence: When = "auto"
    factor: float = 1.0


@dataclass(frozen=True)
class Model:
    """What was fitted.

    Attributes:
        line: In log depth.
        factor: The head's new confidence scale, or its old one.
        no_slope: Why the slope is 1; None: it was fitted.
        no_confidence: Why the factor is the old one; None: it was fitted.
    """

    line: Line
    factor: float
    no_slope: str | None
    no_confidence: str | None


def choose(points: Points, asked: Asked, share: float = 1.0) -> Model:
    """Chooses and fits.

    ``share``: of all points, where these are what a group was left out of; a fold refuses nothing.

    Raises:
        DataError: What is wanted ``always`` is not determined by the points.
    """
    line, no_slope = _line(points, asked.slope, share)
    factor, unsure = _factor(points, asked, line, share, sloped=no_slope is None)
    for name, when, reason in (
        ("slope", asked.slope, no_slope),
        ("confidence", asked.confidence, unsure),
    ):
        if when == "always" and reason is not None and share == 1:
            raise DataError(
                f"the points do not determine the {name}: {reason}. Measure more, or leave {name} "
                "to auto"
            )
    return Model(line, factor, no_slope, unsure)


def refit(points: Points, model: Model) -> Model:
    """The same kind of model of other points; its pivot is the model's."""
    line = fit_part(points, slope=model.no_slope is None).at(model.line.pivot)
    factor = model.factor
    if model.no_confidence is None:
        factor = fit_factor(points, line, model.factor)
    return Model(line, factor, model.no_slope, model.no_confidence)


def left_out_in_turn(points: Points, gain: Callable[[Points, Points], float]) -> list[float]:
    """``gain(the other groups, a group)`` of each group."""
    return [gain(*points.split(group)) for group in points.groups]


def helps(gains: Sequence[float]) -> bool:
    """Whether the mean gain of independent groups is above 0, at 97.5%."""
    if len(gains) < 2:
        return False
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.fmean(gains) > student(len(gains) - 1) * error


def log_error(points: Points, line: Line) -> float:
    """Mean absolute error of log depth, each picture weighing the same."""
    error_PK = (line.log_metres(points.log_pred_PK) - points.log_true_PK).abs()
    return float((error_PK * points.weight_PK).sum())


def _undetermined(points: Points, share: float) -> str | None:
    count, groups = int(points.valid_PK.sum()), len(points.groups)
    if groups < FEWEST * share:
        return (
            f"{count} points in {groups} independent groups of pictures; it takes {FEWEST} groups"
        )
    if (reach := math.exp(min(span(points)))) < SPAN:
        return (
            f"the depths differ by a factor of {reach:.3g} alone (5% to 95% of the points, of the "
            f"head's or the measured ones); it takes {SPAN}"
        )
    return None


def _line(points: Points, when: When, share: float) -> tuple[Line, str | None]:
    scale = fit(points, slope=False)
    if when == "never":
        return scale, NOT_ASKED
    if reason := _undetermined(points, share):
        return scale, reason
    sloped = fit(points, slope=True)
    if not SLOPES[0] <= sloped.slope <= SLOPES[1]:
        return scale, f"the points give {sloped.slope:.3g}, which is no slope of depth"
    if when == "always":
        return sloped, None

    def gain(rest: Points, held: Points) -> float:
        without, with_it = (log_error(held, fit_part(rest, slope=slope)) for slope in (False, True))
        return without - with_it

    gains = left_out_in_turn(points, gain)
    if helps(gains):
        return sloped, None
    mean = statistics.fmean(gains)
    return scale, (
        f"{sloped.slope:.3g} would change the error of log depth of groups that are left out by "
        f"{-mean:+.2g}, which is no significant gain"
    )


def _factor(
    points: Points, asked: Asked, line: Line, share: float, *, sloped: bool
) -> tuple[float, str | None]:
    if asked.confidence == "never":
        return asked.factor, NOT_ASKED
    if reason := no_confidence(points, line, share):
        return asked.factor, reason
    factor = fit_factor(points, line, asked.factor)
    if not FACTORS[0] <= factor / asked.factor <= FACTORS[1]:
        return asked.factor, (
            f"the points ask for a factor of {factor / asked.factor:.3g} or beyond on the head's "
            "predicted error"
        )
    if asked.confidence == "always":
        return factor, None

    def gain(rest: Points, held: Points) -> float:
        other = fit_part(rest, slope=sloped)
        fitted = fit_factor(rest, other, asked.factor)
        new, old = (log_scores(held, other, one).mean() for one in (fitted, asked.factor))
        return float(new - old)

    if statistics.fmean(left_out_in_turn(points, gain)) > 0:
        return factor, None
    return asked.factor, (
        f"{factor:.3g} would be no gain over {asked.factor:.3g} on groups that are left out"
    )

"""A line in log depth through points, some of which are wrong.

Axes: P pictures, K points of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.calibrating.readings import Points
from clipdepth_plugin.metric_calibration import SLOPES

HUBER, CUT = 1.345, 4.0
"""In standard deviations of the points: errors beyond count less, and not at all."""

LEAST_SPREAD = 0.02
"""Standard deviation of log depth below which points don't differ: 2%, less than any head's."""

FEWEST_TO_CUT = 5
"""Points of which one can be told to be wrong."""

_MAD = 1.4826  # of a normal distribution
_TURNS, _SETTLED = 30, 1e-7
_FLAT = 1e-12  # variance of predictions that are all the same


@dataclass(frozen=True)
class Line:
    """log metres = pivot + log_scale + slope * (log prediction - pivot).

    Attributes:
        log_scale: At the pivot.
        slope: 1 where only the scale was fitted.
        pivot: Log of metres: the weighted mean of the predictions.
        left_out: Points that were cut.
    """

    log_scale: float = 0.0
    slope: float = 1.0
    pivot: float = 0.0
    left_out: int = 0

    def log_metres(self, log_pred: Tensor) -> Tensor:
        """From what the decoder gives."""
        return self.pivot + self.log_scale + self.slope * (log_pred - self.pivot)

    def at(self, pivot: float) -> Line:
        """The same with another pivot."""
        log_scale = self.log_scale + (self.slope - 1) * (pivot - self.pivot)
        return Line(log_scale, self.slope, pivot, self.left_out)


def fit(points: Points, *, slope: bool) -> Line:
    """The line, robustly: from absolute errors, then Huber's of the points that are no outliers.

    ``slope``: fit it, too; it is 1 where all predictions are the same.
    """
    x_N, y_N = points.log_pred_PK[points.valid_PK], points.log_true_PK[points.valid_PK]
    weight_N = points.weight_PK[points.valid_PK]
    line = Line(_median(y_N - x_N, weight_N))
    if slope:
        line = _reweighted(x_N, y_N, weight_N, line, LEAST_SPREAD / 10, slope=True)
    error_N = (y_N - line.log_metres(x_N)).abs()
    spread = max(_MAD * _median(error_N, weight_N), LEAST_SPREAD)
    kept_N = error_N <= CUT * spread if len(x_N) >= FEWEST_TO_CUT else error_N.isfinite()
    kept = x_N[kept_N], y_N[kept_N], weight_N[kept_N]
    line = _reweighted(*kept, line, HUBER * spread, slope=slope)
    return Line(line.log_scale, line.slope, line.pivot, int((~kept_N).sum()))


def fit_part(points: Points, *, slope: bool) -> Line:
    """``fit`` of a part of them: of the scale alone where that gives no slope of depth."""
    line = fit(points, slope=slope)
    return line if SLOPES[0] <= line.slope <= SLOPES[1] else fit(points, slope=False)


def span(points: Points) -> tuple[float, float]:
    """Log of farthest over nearest, of predictions and of truths: between their 5% and 95%."""
    weight_N = points.weight_PK[points.valid_PK]
    spans = []
    for x_PK in (points.log_pred_PK, points.log_true_PK):
        ends = [_quantile(x_PK[points.valid_PK], weight_N, share) for share in (0.05, 0.95)]
        spans.append(ends[1] - ends[0])
    return spans[0], spans[1]


def _reweighted(
    x_N: Tensor, y_N: Tensor, weight_N: Tensor, start: Line, bend: float, *, slope: bool
) -> Line:
    """Least squares with errors beyond ``bend`` counted linearly."""
    line = start
    for _ in range(_TURNS):
        error_N = (y_N - line.log_metres(x_N)).abs()
        now_N = weight_N * (bend / error_N.clamp_min(bend))
        now_N = now_N / now_N.sum()
        pivot, mean = float(now_N @ x_N), float(now_N @ y_N)
        tilt = 1.0
        if slope:
            from_N = x_N - pivot
            over = float((now_N * from_N) @ from_N)
            tilt = float((now_N * from_N) @ (y_N - mean)) / over if over > _FLAT else 1.0
        before, line = line, Line(mean - pivot, tilt, pivot)
        moved = before.at(pivot)
        if math.dist((moved.log_scale, moved.slope), (line.log_scale, line.slope)) < _SETTLED:
            break
    return line


def _median(x_N: Tensor, weight_N: Tensor) -> float:
    """Between the two in the middle, where the weights fall apart there."""
    return (_quantile(x_N, weight_N, 0.5) - _quantile(-x_N, weight_N, 0.5)) / 2


def _quantile(x_N: Tensor, weight_N: Tensor, share: float) -> float:
    order_N = x_N.argsort()
    until_N = weight_N[order_N].cumsum(0)
    # Sums of weights are exact to some 1e-15.
    first = int(torch.searchsorted(until_N, share * float(until_N[-1]) - 1e-12))
    return float(x_N[order_N[min(first, len(x_N) - 1)]])

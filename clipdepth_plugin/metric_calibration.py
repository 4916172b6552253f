"""MetricCalibration: what measured depths say of a head's metres, with its error bars."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field

from clipdepth_plugin.settings import Count, CountOrZero, GivenMetres, Settings

SCALES = (1e-2, 1e2)
SLOPES = (0.1, 10.0)
"""What a calibration may change: beyond, the depths are in another unit, or of another picture."""

Error = Annotated[float, Field(ge=0.0, le=1e6)]

# 0.975 quantile of Student's t with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class MetricCalibration(Settings):
    """metres = scale * pivot * (decoder's metres / pivot) ^ slope.

    A line in log depth, through log (pivot * scale) at the pivot, where scale and slope are
    uncorrelated. It is applied to the decoder's metres, those of the canonical camera where the
    head has one. Fitted by ``calibrating.calibrate``; every error is a standard error between
    independent groups of pictures, None where there are too few of them.
    """

    scale: Annotated[float, Field(ge=SCALES[0], le=SCALES[1])]
    """Factor on depth at ``pivot``; at every depth, where ``slope`` is 1."""

    slope: Annotated[float, Field(ge=SLOPES[0], le=SLOPES[1])] = 1.0
    """In log depth."""

    pivot: GivenMetres = 1.0
    """The points' geometric mean, in the decoder's metres; 1 without a slope."""

    scale_error: Error | None = None
    """Of log ``scale``: 0.02 is 2%."""

    slope_error: Error | None = None
    """None also where no slope was fitted."""

    confidence_error: Error | None = None
    """Of the log of the head's ``confidence_scale``; None also where that was not fitted."""

    data: str = ""
    """What was measured."""

    points: Count
    """Measured depths."""

    left_out: CountOrZero
    """Points that no fit of the others explains: a measurement of another surface."""

    pictures: Count
    """With points."""

    groups: Count
    """Of pictures, taken as independent: the errors have one degree of freedom less."""

    measured: tuple[GivenMetres, GivenMetres]
    """Nearest and farthest measured depth in metres. Beyond, the calibration is an
    extrapolation."""

    abs_rel: tuple[Error, Error] | None = None
    """Before and after, of groups that were left out of the fit; None where there is but one."""

    def log_metres(self, log_metres: float) -> float:
        """The log of calibrated metres, from that of the decoder's (a number or a tensor)."""
        pivot = math.log(self.pivot)
        return math.log(self.scale) + pivot + self.slope * (log_metres - pivot)

    def metres(self, metres: float) -> float:
        """The same of metres."""
        return math.exp(self.log_metres(math.log(metres)))

    def trained_further(self) -> Self:
        """The same function, of other weights than those that were measured: no errors known."""
        unknown = ("scale_error", "slope_error", "confidence_error", "abs_rel")
        return self.model_copy(update=dict.fromkeys(unknown))

    @property
    def said(self) -> str:
        """In words, with the 95% intervals."""
        reach = interval(self.scale_error, self.groups)
        text = f"scale {self.scale:.4g}"
        if reach is None:
            text += " (no error bar)"
        else:
            low, high = self.scale * math.exp(-reach), self.scale * math.exp(reach)
            text += f" (95%: {low:.4g} to {high:.4g})"
        if self.slope != 1:
            reach = interval(self.slope_error, self.groups)
            bar = "no error bar" if reach is None else f"95%: +- {reach:.2g}"
            text += f" at {self.pivot:.3g} m, slope {self.slope:.4g} in log depth ({bar})"
        return text


def interval(error: float | None, groups: int) -> float | None:
    """Half the 95% interval of a value with this standard error between so many groups."""
    return None if error is None else error * student(groups - 1)


def student(freedom: int) -> float:
    """0.975 quantile of Student's t, within 1%."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom

"""Medians of paired differences and ratios, with bootstrap 95% intervals.

The interval is the expanded percentile bootstrap of the median (Hesterberg, "What Teachers Should
Know about the Bootstrap", arXiv 1411.5279, section 5.3): the plain percentile one is too narrow
for tens of rounds. ``tests/latency`` checks its coverage over many simulated runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import BenchError

LEVEL = 0.95
MIN_ROUNDS = 8
"""With fewer, even the range of all rounds covers the median too rarely."""
_DRAWS = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A median with the ends of its bootstrap 95% interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def above_noise(self) -> bool:
        """Whether zero lies outside, and half the interval's width is below the median."""
        return not self.contains(0.0) and (self.high - self.low) / 2 < abs(self.median)

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return self.low <= value <= self.high

    def scaled(self, factor: float, *, shift: float = 0.0) -> Interval:
        """Shifted, then scaled: ``scaled(100, shift=-1)`` turns a ratio into added percent."""
        return Interval(*(factor * (x + shift) for x in (self.median, self.low, self.high)))


@dataclass(frozen=True)
class Comparison:
    """A variant against its baseline, paired round by round; the difference is in seconds.

    Where it is not significant, only the upper end of its interval means something.
    """

    difference: Interval
    ratio: Interval
    significant: bool


def check_rounds(rounds: int) -> None:
    """Raises a BenchError for fewer rounds than ``MIN_ROUNDS``."""
    if rounds < MIN_ROUNDS:
        raise BenchError(f"{rounds} rounds: a 95% interval of a median needs {MIN_ROUNDS} or more")


def median_interval(values: Values, *, seed: int = 0) -> Interval:
    """The median of (rounds,) independent values, and its bootstrap 95% interval."""
    count = len(values)
    check_rounds(count)
    if not np.isfinite(values).all():
        raise BenchError("a time is not finite")
    draws = np.random.default_rng(seed).integers(0, count, (_DRAWS, count))
    tail = _tail(count)
    low, high = np.quantile(np.median(values[draws], axis=1), (tail, 1 - tail))
    return Interval(float(np.median(values)), float(low), float(high))


def compare(variant: Values, baseline: Values, control: Values | None = None) -> Comparison:
    """A variant against its baseline.

    The control is the baseline timed once more in the same rounds; its difference from the
    baseline is noise. An effect is significant if its interval excludes zero and is narrower than
    twice its median, and its median exceeds every value in the control's interval.
    """
    difference = median_interval(variant - baseline)
    significant = difference.above_noise
    if control is not None:
        noise = median_interval(control - baseline)
        significant &= abs(difference.median) > max(abs(noise.low), abs(noise.high))
    return Comparison(difference, median_interval(variant / baseline), significant)


def _tail(count: int) -> float:
    """Probability outside on each side, smaller for few values.

    Corrects for the bootstrap's variance (n - 1 where n is due) and for normal in place of t.
    """
    normal, degrees = NormalDist(), count - 1
    z = normal.inv_cdf(0.5 + LEVEL / 2)
    # Student's t by its expansion about the normal (Abramowitz and Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return normal.cdf(-math.sqrt(count / degrees) * t)

"""From times to figures: paired differences and ratios, with intervals that keep their promise.

The interval is the expanded percentile bootstrap of the median (Hesterberg, "What Teachers Should
Know about the Bootstrap", arXiv 1411.5279, section 5.3): the plain percentile one is too narrow
for tens of rounds. ``tests/latency`` holds its rate over many simulated runs.
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
"""With fewer, the extreme rounds themselves cover the median too rarely."""
_DRAWS = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95% interval.

    Attributes:
        median: Of the values.
        low: Lower end.
        high: Upper end.
    """

    median: float
    low: float
    high: float

    @property
    def extent(self) -> float:
        """The largest size that the interval admits."""
        return max(abs(self.low), abs(self.high))

    @property
    def above_noise(self) -> bool:
        """Whether zero lies outside, and the interval's half is smaller than the median."""
        return not self.contains(0.0) and (self.high - self.low) / 2 < abs(self.median)

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return self.low <= value <= self.high

    def agrees_with(self, other: Interval) -> bool:
        """Whether the two intervals overlap."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of the times themselves: p50, p95 and p99 in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Values) -> Quantiles:
        """Interpolated between the nearest two; p99 of few rounds is near their maximum."""
        return cls(*(float(q) for q in np.quantile(seconds, (0.50, 0.95, 0.99))))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against its base, paired round by round.

    Attributes:
        difference: Variant minus base, seconds.
        ratio: Variant over base.
        told: Whether the difference can be told from noise; where not, only a bound is known.
    """

    difference: Interval
    ratio: Interval
    told: bool


def median_interval(values: Values, *, seed: int = 0) -> Interval:
    """The median and its bootstrap 95% interval.

    Args:
        values: (rounds,), one independent value for each round.
        seed: Of the resampling.

    Raises:
        BenchError: Fewer than ``MIN_ROUNDS`` values, or one that is not finite.
    """
    count = len(values)
    if count < MIN_ROUNDS:
        raise BenchError(f"{count} rounds: a 95% interval of a median needs {MIN_ROUNDS} or more")
    if not np.isfinite(values).all():
        raise BenchError("a time is not finite")
    draws = np.random.default_rng(seed).integers(0, count, (_DRAWS, count))
    outside = tail(count)
    low, high = np.quantile(np.median(values[draws], axis=1), (outside, 1 - outside))
    return Interval(float(np.median(values)), float(low), float(high))


def median_ratio(above: Values, below: Values, *, seed: int = 0) -> Interval:
    """The median of one over the median of another and its bootstrap 95% interval.

    Rounds are resampled together. Unlike the median of the rounds' ratios it holds where some
    values of ``below`` are negative or zero, as differences of times can be: what is divided by no
    positive median counts as infinite, so that only the lower end may be a number.

    Args:
        above: (rounds,) positive.
        below: (rounds,), of the same rounds.
        seed: Of the resampling.

    Raises:
        BenchError: As ``median_interval``.
    """
    median_interval(below)  # refuses what is no sample
    count = len(below)
    draws = np.random.default_rng(seed).integers(0, count, (_DRAWS, count))
    over_D, under_D = np.median(above[draws], axis=1), np.median(below[draws], axis=1)
    ratios_D = np.full(_DRAWS, np.inf)
    np.divide(over_D, under_D, out=ratios_D, where=under_D > 0)
    ratios_D.sort()
    # No quantile between two draws, which would be a difference of infinities.
    outside = tail(count) * (_DRAWS - 1)
    low, high = ratios_D[math.floor(outside)], ratios_D[math.ceil(_DRAWS - 1 - outside)]
    middle = float(np.median(below))
    median = float(np.median(above)) / middle if middle > 0 else math.inf
    return Interval(median, float(low), float(high))


def compare(variant: Values, base: Values, control: Values | None = None) -> Comparison:
    """A variant against its base.

    The control is the base timed once more in the same rounds: what it differs from itself is
    noise. An effect is told from noise if its interval leaves zero out and is narrower than twice
    its median, and its median is larger than all that the control's interval admits.

    Args:
        variant: (rounds,) seconds.
        base: (rounds,) seconds, of the same rounds.
        control: (rounds,) seconds of the base's second timing, or None where there is none.

    Raises:
        BenchError: Too few rounds.
    """
    difference = median_interval(variant - base)
    told = difference.above_noise
    if control is not None:
        told = told and abs(difference.median) > median_interval(control - base).extent
    return Comparison(difference, median_interval(variant / base), told)


def tail(count: int) -> float:
    """Probability outside on each side, made smaller for few values.

    Corrects for the bootstrap's variance, n - 1 where n is due, and for normal in place of t.
    """
    normal, degrees = NormalDist(), count - 1
    z = normal.inv_cdf(0.5 + LEVEL / 2)
    # Student's t by its expansion about the normal (Abramowitz and Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return normal.cdf(-math.sqrt(count / degrees) * t)

"""The exponent of a cost: the slope of log time over log quantity.

Axes: V values of the quantity, R rounds, D bootstrap draws.
"""

from __future__ import annotations

import numpy as np

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.intervals import MIN_ROUNDS, Interval, Values, tail

_DRAWS = 2000


def fit_exponent(quantity_V: Values, times_VR: Values, *, seed: int = 0) -> Interval:
    """Least squares on the logarithms of each value's median, rounds resampled together.

    Args:
        quantity_V: What grows; positive.
        times_VR: Times, or differences of times, of the same rounds for every value.
        seed: Of the resampling.

    Raises:
        BenchError: Too few rounds, fewer than two values, or a median that is not positive.
    """
    rounds = times_VR.shape[1]
    if rounds < MIN_ROUNDS or len(quantity_V) < 2:
        raise BenchError(
            f"an exponent needs {MIN_ROUNDS} rounds and two values, got {times_VR.shape}"
        )
    if (np.median(times_VR, axis=1) <= 0).any():
        raise BenchError("an exponent needs medians above zero: this cost is lost in noise")
    draws_DR = np.random.default_rng(seed).integers(0, rounds, (_DRAWS, rounds))
    medians_VD = np.median(times_VR[:, draws_DR], axis=2)
    usable = medians_VD[:, (medians_VD > 0).all(axis=0)]
    slopes_D = _slopes(quantity_V, usable)
    outside = tail(rounds)
    low, high = np.quantile(slopes_D, (outside, 1 - outside))
    (slope,) = _slopes(quantity_V, np.median(times_VR, axis=1)[:, None])
    return Interval(float(slope), float(low), float(high))


def _slopes(quantity_V: Values, times_VD: Values) -> Values:
    x_V = np.log(quantity_V) - np.log(quantity_V).mean()
    slopes: Values = x_V @ np.log(times_VD) / (x_V @ x_V)
    return slopes

"""What the tables of results/ share: how they write what was measured several times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def share(interval: Mapping[str, float]) -> str:
    """A median share and its 95% interval."""
    return f"{interval['median']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"


def each(values: Iterable[str]) -> str:
    """Different values, in the order that they came up."""
    return "; then ".join(dict.fromkeys(values))


class Change(NamedTuple):
    """How far one mean is above another, as a share of that; and the standard error of it.

    The error is that of the seeds (by the delta method), None where one of the two has one seed.
    """

    share: float
    error: float | None


def change_of_mean(ours: Sequence[float], theirs: Sequence[float]) -> Change:
    """The change from the mean of theirs to the mean of ours."""
    ratio = statistics.mean(ours) / statistics.mean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Change(ratio - 1, None)
    parts = (
        statistics.stdev(values) / math.sqrt(len(values)) / statistics.mean(values)
        for values in (ours, theirs)
    )
    return Change(ratio - 1, ratio * math.hypot(*parts))

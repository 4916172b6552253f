"""What the tables of results/ share: how they write what was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

FORMER_UNTIL = "2026-11-26T19"
"""When `fast` and `guided` became what they are: ladder.md says what changed."""


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def share(interval: Mapping[str, float]) -> str:
    """A median share and its 95% interval."""
    return f"{interval['median']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"

"""An audit in plain words; where noise is larger than an effect, that is said instead of it."""

from __future__ import annotations

import math

import numpy as np

from clipdepth_plugin.latency.intervals import median_ratio
from clipdepth_plugin.latency.schema import Added, Audit, Figure, Range

BUSY_PROCESSORS = 0.05
"""Taken by others: more is no idle machine, however many processors it has."""

_NOUNS = {"tower": "the tower", "prefill": "the prefill", "whole": "the whole host"}


def make_verdict(audit: Audit) -> tuple[str, ...]:
    """Lines for noise, other work and taps, for each head and form, and for what is beside them."""
    lines = [_noise_line(audit), *others_line(audit.others_percent, audit.processors_seen)]
    for name in audit.heads:
        of_head = [figure for figure in audit.figures if figure.head == name]
        hooks = [figure for figure in of_head if figure.what == "hooks"]
        if hooks:
            lines.append(_sentence(f"Tapping alone, for {name},", hooks))
        for form in dict.fromkeys(figure.form for figure in of_head if figure.form):
            depth = [f for f in of_head if (f.form, f.what) == (form, "depth")]
            lines.append(_sentence(f"Depth by {name} ({form})", depth))
    lines += [_separate_line(audit, f) for f in audit.figures if f.scope == "separate"]
    return tuple(lines)


def percent(value: Range) -> str:
    """``6.1% [5.2, 7.0]``, to the digit that its interval can hold."""
    digits = 2 if value.high - value.low < 0.3 else 1 if value.high - value.low < 30 else 0
    return f"{value.median:.{digits}f}% [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def said(added: Added) -> str:
    """What is added, or that it is lost in noise and how much it is at most."""
    if added.told:
        return percent(added.percent)
    return f"lost in noise (at most {_bound(added)})"


def _bound(added: Added) -> str:
    bound = max(added.percent.high, 0.0)
    return f"{bound:.1f}%" if bound < 10 else f"{bound:.0f}%"


def _sentence(subject: str, figures: list[Figure]) -> str:
    """``Depth by fast (eager) adds 6.1% [5.2, 7.0] to the tower, 0.4% [0.3, 0.5] to ...``."""
    parts = []
    for figure in figures:
        (added,), noun = figure.added, _NOUNS[figure.scope]
        if added.told:
            parts.append(f"{percent(added.percent)} to {noun}")
        else:
            parts.append(f"to {noun} less than the noise shows (at most {_bound(added)})")
    return f"{subject} adds {', '.join(parts)}."


def _noise_line(audit: Audit) -> str:
    found = [f"{_NOUNS[scope]} by {percent(noise)}" for scope, noise in audit.noise_percent.items()]
    return f"Noise: timed twice in each round, a host differs from itself: {', '.join(found)}."


def others_line(percent: float | None, processors: int) -> list[str]:
    """Whether the machine did something else meanwhile; nothing where that isn't known.

    Args:
        percent: Of all processors' time.
        processors: How many these are.
    """
    if percent is None:
        return []
    taken = percent / 100 * processors
    line = f"Others took {percent:.1f}% of the processors' time meanwhile"
    if taken <= BUSY_PROCESSORS:
        return [f"{line}."]
    return [f"{line}, {taken:.2g} of {processors}: NOT an idle machine, measure again."]


def _separate_line(audit: Audit, separate: Figure) -> str:
    """A separate network beside the cheapest head: all its time, over what reading depth adds."""
    shares = ", ".join(f"{said(a)} of {_NOUNS[a.base]}" for a in separate.added)
    line = f"A separate {separate.name} takes {shares}"
    depth = [f for f in audit.figures if (f.scope, f.what) == ("tower", "depth") and f.added]
    if not depth or not separate.added[0].told:
        return f"{line}."
    # Of all, told from noise or not: what is lost in noise is cheaper than what is told.
    cheapest = min(depth, key=lambda f: f.added[0].milliseconds.median)
    alone = np.array(audit.figure("tower alone").seconds)
    ratio = median_ratio(np.array(separate.seconds), np.array(cheapest.seconds) - alone)
    adds = f"depth by {cheapest.head} ({cheapest.form}) adds to the tower"
    if cheapest.added[0].told and math.isfinite(ratio.high):
        return f"{line}: {ratio.median:.1f} times [{ratio.low:.1f}, {ratio.high:.1f}] what {adds}."
    if math.isfinite(ratio.low):
        return f"{line}: at least {ratio.low:.1f} times what {adds}, which is lost in noise."
    return f"{line}; what {adds} is lost in noise."

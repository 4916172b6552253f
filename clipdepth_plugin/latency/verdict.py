"""An audit in sentences; an effect below the noise floor is reported as such."""

from __future__ import annotations

from clipdepth_plugin.latency.intervals import Interval
from clipdepth_plugin.latency.schema import Added, Audit, Figure

_NOUNS = {"tower": "the tower", "prefill": "the prefill", "whole": "the whole host"}


def make_verdict(audit: Audit) -> tuple[str, ...]:
    """Sentences for the noise floor, the taps, each head in each form, and separate networks."""
    found = [f"{percent(noise)} of {_NOUNS[name]}" for name, noise in audit.noise_percent.items()]
    lines = [f"Noise floor, from timing the host twice in each round: {', '.join(found)}."]
    for name in audit.heads:
        of_head = [figure for figure in audit.figures if figure.head == name]
        hooks = [figure for figure in of_head if figure.what == "hooks"]
        if hooks:
            lines.append(_sentence(f"Added by the taps alone, for {name}", hooks))
        for form in dict.fromkeys(figure.form for figure in of_head if figure.form):
            depth = [f for f in of_head if (f.form, f.what) == (form, "depth")]
            lines.append(_sentence(f"Added by depth from {name}, {form}", depth))
    for figure in audit.figures:
        if figure.scope == "separate":
            shares = ", ".join(f"{share(a)} of {_NOUNS[a.baseline]}" for a in figure.added)
            lines.append(f"A separate {figure.name} takes {shares}.")
    return tuple(lines)


def percent(value: Interval) -> str:
    """``6.1% [5.2, 7.0]``, with as many digits as its interval justifies."""
    digits = 2 if value.high - value.low < 0.3 else 1 if value.high - value.low < 30 else 0
    return f"{value.median:.{digits}f}% [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def share(added: Added) -> str:
    """What is added in percent, or that it is below the noise floor and its upper bound."""
    if added.significant:
        return percent(added.percent)
    return f"below noise (at most {max(added.percent.high, 0.0):.1f}%)"


def _sentence(subject: str, figures: list[Figure]) -> str:
    """``Added by depth from fast, eager: 6.1% [5.2, 7.0] of the tower, 0.4% [0.3, 0.5] of ...``."""
    parts = [f"{share(figure.added[0])} of {_NOUNS[figure.scope]}" for figure in figures]
    return f"{subject}: {', '.join(parts)}."

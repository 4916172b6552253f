"""An audit as a table and in sentences; effects below the noise floor are reported as such."""

from __future__ import annotations

from collections.abc import Sequence

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.latency.intervals import Interval
from clipdepth_plugin.latency.schema import Added, Audit, Figure

HEADER = (
    "what", "p50 ms", "p95 ms", "adds ms", "in % of its baseline", "adds MiB", "GFLOP",
)  # fmt: skip
_NOUNS = {
    "tower": "the tower",
    "prefill": "the prefill",
    "whole": "the whole host",
    "exported": "the exported tower",
}


def rows(audit: Audit) -> list[tuple[str, ...]]:
    """The table's cells, a row for each figure."""
    return [_row(figure, audit) for figure in audit.figures]


def to_markdown(audit: Audit) -> str:
    """The whole audit as Markdown."""
    host, settings = audit.host, audit.settings
    height, width = settings.size
    prompt = f", prompt of {host.prompt_tokens} tokens" if host.prompt_tokens else ""
    method = (
        f"{host.model}, {host.parameters / 1e6:.1f} M parameters, of which "
        f"{host.tower_parameters / 1e6:.1f} M in the tower, batch {settings.batch}, "
        f"{height} x {width}{prompt}. {settings.rounds} interleaved rounds after "
        f"{settings.warmup} warm-up calls of each variant; medians of paired differences, with "
        "their bootstrap 95% interval."
    )
    heads = [
        f"- {name}: preset {head.preset}, {head.parameters / 1e6:.2f} M parameters, levels "
        f"{', '.join(map(str, head.levels))}"
        for name, head in audit.heads.items()
    ]
    verdict = [f"- {line}" for line in audit.verdict]
    table = markdown_table(HEADER, rows(audit))
    parts = [[f"# Added latency: {host.label}"], verdict, [method], table, heads]
    text = "\n\n".join("\n".join(part) for part in parts if part)
    return f"{text}\n\n{describe(audit.environment)}\n"


def describe(seen: Environment) -> str:
    """Machine, versions, date and command in a paragraph."""
    versions = ", ".join(f"{name} {number}" for name, number in seen.versions.items())
    return (
        f"Measured {seen.created} on {seen.gpu or seen.cpu}, {seen.cores} cores, {seen.threads} "
        f"threads, load {seen.load} before; {seen.platform}; {seen.device}, {seen.dtype}; "
        f"{versions}; commit {seen.commit}."
        + (f" Command: `{' '.join(seen.command)}`." if seen.command else "")
    )


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines in Markdown."""
    lines = [header, ["---"] * len(header), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _row(figure: Figure, audit: Audit) -> tuple[str, ...]:
    added = figure.added
    significant = [one for one in added if one.significant]
    several = len(added) > 1
    shares = [f"{share(one)} of the {one.baseline}" if several else share(one) for one in added]
    milliseconds = ""
    if significant:
        found = significant[0].milliseconds
        milliseconds = f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return (
        figure.name,
        f"{figure.p50_ms:.2f}",
        f"{figure.p95_ms:.2f}",
        milliseconds,
        ", ".join(shares),
        _memory(added[0], audit) if added else "",
        "" if figure.gflops is None else f"{figure.gflops:.3g}",
    )


def _memory(added: Added, audit: Audit) -> str:
    """MiB, or that it does not exceed the difference of the baseline's own peaks."""
    if added.memory_mib is None:
        return ""
    noise = audit.memory_noise_mib(added.baseline)
    if noise is not None and added.memory_mib <= noise:
        return f"below noise ({noise:.1f})"
    return f"{added.memory_mib:.1f}"


def make_verdict(audit: Audit) -> tuple[str, ...]:
    """An audit in sentences: noise floor, taps, each head in each form, separate networks."""
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
    exported = [f for f in audit.figures if (f.scope, f.what) == ("exported", "depth")]
    if exported:
        lines.append(_sentence("Added by depth where both are exported", exported))
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

"""An audit for people: one table, for a terminal and in Markdown, and the verdict above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.latency.schema import Added, Audit, Figure, Range, Sweep
from clipdepth_plugin.latency.verdict import others_line, said

if TYPE_CHECKING:
    from rich.table import Table

HEADER = (
    "of", "what", "p50 ms", "p95 ms", "p99 ms", "adds ms", "in % of its base", "adds MiB", "GFLOP",
)  # fmt: skip
_FORMS = {"batch": "pictures", "pixels": "pixels on a side", "levels": "tapped levels"}


def rows(audit: Audit) -> list[tuple[str, ...]]:
    """The table's cells, a row for each figure."""
    return [_row(figure, audit) for figure in audit.figures]


def to_markdown(audit: Audit) -> str:
    """The whole audit as Markdown."""
    host, settings = audit.host, audit.settings
    height, width = settings.size
    prompt = f", prompt of {host.prompt_tokens} tokens" if host.prompt_tokens else ""
    summary = (
        f"`{host.spec}` ({host.model}, {host.parameters / 1e6:.1f} M parameters, of which "
        f"{host.tower_parameters / 1e6:.1f} M in the tower), "
        f"{'random weights, ' if host.random_weights else ''}batch {settings.batch}, "
        f"{height} x {width}{prompt}. {settings.rounds} interleaved rounds after "
        f"{settings.warmup} warm-up calls of each; medians of paired differences, with their "
        "bootstrap 95% interval."
    )
    lines = [
        f"# Added latency: {host.label}",
        "",
        *(f"- {line}" for line in audit.verdict),
        "",
        summary,
        "",
        *markdown_table(HEADER, rows(audit)),
        "",
        *(
            f"- {name}: preset {head.preset}, {head.parameters / 1e6:.2f} M parameters "
            f"({head.parameters_mib:.1f} MiB), levels {', '.join(map(str, head.levels))}"
            for name, head in audit.heads.items()
        ),
        *(f"- Not measured, {form}: {why}" for form, why in audit.forms_not_measured.items()),
        "",
    ]
    for sweep in audit.sweeps:
        lines += [
            f"## Over the {_FORMS[sweep.over]}, tower",
            "",
            *sweep_markdown(sweep, audit.processors_seen),
            "",
        ]
    lines += [describe(audit.environment), ""]
    return "\n".join(lines)


def sweep_markdown(sweep: Sweep, processors: int) -> list[str]:
    """A sweep's table and what is said of it, as lines of Markdown; ``processors`` as there."""
    heads = list(sweep.points[0].added_ms)
    header = [_FORMS[sweep.over], "tower ms", "images/s"]
    for name in heads:
        header += [f"{name} adds ms", f"images/s with {name}"]
    table = []
    for point in sweep.points:
        cells = [str(point.value), _ms(point.tower_ms), f"{point.images_per_second:.2f}"]
        for name in heads:
            added = _ms(point.added_ms[name]) if point.added_told[name] else "lost in noise"
            cells += [added, f"{point.images_per_second_with[name]:.2f}"]
        table.append(tuple(cells))
    notes = " ".join(sweep_notes(sweep, processors))
    return [*markdown_table(tuple(header), table), "", *([notes] if notes else [])]


def sweep_notes(sweep: Sweep, processors: int) -> list[str]:
    """What is said of a sweep: its exponents, why one is missing, and others' work meanwhile.

    Args:
        sweep: Of an audit.
        processors: The audit's ``processors_seen``.
    """
    over = "pixels" if sweep.over == "pixels" else _FORMS[sweep.over]
    exponents = ", ".join(f"{one.of} {one.exponent}" for one in sweep.exponents)
    fitted = [f"Exponents over the number of {over}: {exponents}."] if exponents else []
    missing = (f"No exponent of {of}: {why}." for of, why in sweep.exponents_not_fitted.items())
    return [*fitted, *missing, *others_line(sweep.others_percent, processors)]


def make_table(audit: Audit) -> Table:
    """The audit for a terminal."""
    from rich import box
    from rich.table import Table

    settings = audit.settings
    table = Table(
        title=f"{audit.host.label}, batch {settings.batch}, {settings.rounds} rounds",
        title_justify="left",
        box=box.SIMPLE,
    )
    for name in ("", "p50 / p95 / p99 ms", "adds ms", "in % of its base", "MiB", "GFLOP"):
        table.add_column(name, justify="right" if name else "left")
    for figure, cells in zip(audit.figures, rows(audit), strict=True):
        _, name, *times, added, share, memory, operations = cells
        style = "bold" if figure.what == "depth" else ""
        table.add_row(name, " / ".join(times), added, share, memory, operations, style=style)
    return table


def describe(seen: Environment) -> str:
    """Machine, versions, date and command in a paragraph."""
    gpu = f", {seen.gpu} ({seen.gpu_mhz or 'clocks not readable'}), CUDA {seen.cuda}"
    clock = f" at {seen.cpu_mhz:.0f} MHz" if seen.cpu_mhz is not None else ""
    versions = ", ".join(f"{name} {number}" for name, number in seen.versions.items())
    return (
        f"Measured {seen.created} on {seen.cpu}{clock}, {seen.cores} cores, {seen.threads} "
        f"threads, load {seen.load} before{gpu if seen.gpu else ''}; {seen.platform}; "
        f"{seen.device}, {seen.dtype}; {versions}; commit {seen.commit}. "
        f"Command: `{' '.join(seen.command)}`."
    )


def _row(figure: Figure, audit: Audit) -> tuple[str, ...]:
    added = figure.added
    told = [one for one in added if one.told]
    operations = "" if figure.gflops is None else f"{figure.gflops:.3g}"
    shares = [f"{said(one)} of the {one.base}" if len(added) > 1 else said(one) for one in added]
    return (
        figure.scope,
        figure.name,
        *(f"{ms:.2f}" for ms in (figure.p50_ms, figure.p95_ms, figure.p99_ms)),
        _ms(told[0].milliseconds) if told else "-" if added else "",
        ", ".join(shares),
        _memory(added[0], audit) if added else "",
        operations,
    )


def _memory(added: Added, audit: Audit) -> str:
    """MiB, or that it is not more than what the base's own peak differs by."""
    if added.memory_mib is None:
        return ""
    noise = audit.memory_noise(added.base)
    if noise is not None and added.memory_mib <= noise:
        return f"lost in noise ({noise:.1f})"
    return f"{added.memory_mib:.1f}"


def _ms(value: Range) -> str:
    return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"


def markdown_table(header: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> list[str]:
    """A table's lines in Markdown."""
    lines = [header, tuple("---" for _ in header), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]

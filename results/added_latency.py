"""Measures what depth adds to six hosts, and writes every table of it.

    python results/added_latency.py measure NAME   # results/added_latency/NAME.json; see PLANS
    python results/added_latency.py table          # added_latency.md and .png, and README's table

Hosts are built from their configs with random weights; nothing is downloaded. Each file comes from
one interleaved run, with all else on the machine stopped; nothing is compared across files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure as Picture
from rich.console import Console
from spread import FORMER_UNTIL

from clipdepth_plugin.cli.bench_options import BenchOptions
from clipdepth_plugin.cli.run_bench import measure
from clipdepth_plugin.latency.agreement import compare_audits
from clipdepth_plugin.latency.plot import draw_sweep, save
from clipdepth_plugin.latency.report import HEADER as COLUMNS
from clipdepth_plugin.latency.report import describe, markdown_table, rows, sweep_markdown
from clipdepth_plugin.latency.schema import Added, Audit, load_audit
from clipdepth_plugin.latency.verdict import make_verdict, percent, said

HERE = Path(__file__).resolve().parent
RUNS = HERE / "added_latency"
README = HERE.parent / "README.md"
OPENS, CLOSES = "<!-- made by: python results/added_latency.py table -->", "<!-- end of it -->"
PRESETS = ("spaceclip", "fast", "guided")
TWICE = ("vit-b-16", "vit-b-16-again")
SWEEPS = "vit-b-16-sweeps"
ON_GPU = "vit-b-16-cuda"

_PLAIN = BenchOptions(
    "", presets=PRESETS, threads=2, rounds=16, warmup=1, sweeps=(), sweep_rounds=8
)
_CUDA = replace(
    _PLAIN,
    device="cuda",
    dtype="bfloat16",
    threads=None,
    rounds=40,
    warmup=4,
    forms=("eager", "fused", "graph", "overlap"),
)
PLANS: dict[str, BenchOptions] = {
    "vit-b-16": replace(_PLAIN, host="config:vit-b-16"),
    "vit-b-16-again": replace(_PLAIN, host="config:vit-b-16", seed=1),
    "vit-l-14-336": replace(_PLAIN, host="config:vit-l-14-336", rounds=8),
    "siglip-b-16": replace(_PLAIN, host="config:siglip-b-16", rounds=12),
    "so400m-14": replace(_PLAIN, host="config:so400m-14", rounds=8),
    "llava-small": replace(_PLAIN, host="config:llava-small", rounds=10),
    "paligemma-small": replace(_PLAIN, host="config:paligemma-small", rounds=10),
    ON_GPU: replace(_CUDA, host="config:vit-b-16"),
    SWEEPS: replace(
        _PLAIN,
        host="config:vit-b-16",
        rounds=8,
        separate=(),
        sweeps=("batch=1,2,4", "pixels=224,336,448", "levels=1,2,4,8,12"),
    ),
}
HOSTS = ("vit-b-16", "siglip-b-16", "so400m-14", "vit-l-14-336", "llava-small", "paligemma-small")


def run(name: str) -> None:
    """Writes one run file."""
    command = ("python", "results/added_latency.py", "measure", name)
    RUNS.mkdir(exist_ok=True)

    def keep(report: Audit) -> None:
        text = report.model_dump_json(indent=1) + "\n"
        (RUNS / f"{name}.json").write_text(text, encoding="utf-8")

    report = measure(PLANS[name], command, Console(stderr=True), keep)
    print(*report.verdict, sep="\n")


def found() -> dict[str, Audit]:
    """The runs that are there, in the order of HOSTS."""
    paths = {name: RUNS / f"{name}.json" for name in HOSTS}
    return {name: load_audit(path) for name, path in paths.items() if path.exists()}


def summary(audits: dict[str, Audit]) -> list[str]:
    """README's table: a row for each host and what depth is added to."""
    separate = [f.name for f in next(iter(audits.values())).figures if f.scope == "separate"]
    header = ("host", "depth added to", *(f"`{p}`" for p in PRESETS), *separate)
    cells = []
    for audit in audits.values():
        for scope in audit.noise_percent:
            alone = audit.figure(f"{scope} alone")
            row = [audit.host.label, f"the {scope}, {alone.p50_ms:.0f} ms"]
            row += [added_by(audit, f"{scope} + {preset}, eager", scope) for preset in PRESETS]
            row += [added_by(audit, name, scope) for name in separate]
            cells.append(tuple(row))
    return markdown_table(header, cells)


def added_by(audit: Audit, name: str, scope: str) -> str:
    """One cell: percent of the base with its interval, or that it is lost in noise."""
    try:
        added: tuple[Added, ...] = audit.figure(name).added
    except KeyError:
        return "not measured"
    return next(said(one) for one in added if one.base == scope)


def readme_section(audits: dict[str, Audit]) -> str:
    """What stands between the two marks in README.md."""
    seen = next(iter(audits.values())).environment
    dates = sorted({audit.environment.created[:10] for audit in audits.values()})
    note = (
        f"Batch 1, {seen.dtype}, eager, {seen.device}: {seen.cpu}, {seen.threads} threads; torch "
        f"{seen.versions['torch']}; {' and '.join(dates)}. Each row comes from one interleaved "
        "run: medians of paired differences in % of the time named in the row, 95% interval in "
        "brackets; a separate network's is all of its time."
    ) + former_heads(*audits.values())
    return "\n".join([OPENS, *summary(audits), "", note, CLOSES])


def former_heads(*audits: Audit) -> str:
    """What to say where our heads were others when they were measured."""
    old = [a.host.label for a in audits if a.environment.created < FORMER_UNTIL]
    if not old:
        return ""
    which = "" if len(old) == len(audits) else f", on {', '.join(old)}"
    return f" `fast` and `guided` were the former ones then{which} (see the ladder)."


def whole_file(audits: dict[str, Audit]) -> Iterator[str]:
    """Lines of added_latency.md."""
    yield "# Added latency"
    yield ""
    yield "Made by `python results/added_latency.py table` from the files in `added_latency/`, each"
    yield "by `... measure NAME`. Hosts and heads have random weights. Each file comes from one"
    yield "interleaved run with all else on the machine stopped: what others took meanwhile is"
    yield "said; `load ... before` is of the minute before. Nothing is compared across files."
    yield "The language models of the two multimodal hosts are scaled down to 0.2 to 0.3 G"
    yield "parameters: the share of their prefill is larger than beside a model of 3 or 7 G. On a"
    yield "GPU one host has been measured, below. `adds MiB` is what a call takes above what is"
    yield "held before it: not what a recording (graph, overlap) keeps for good; lost in noise"
    yield "where it is not more than the MiB, in brackets, by which the base's peak differs from"
    yield "itself." + _one_pair(audits)
    yield ""
    yield from summary(audits)
    for audit in audits.values():
        yield from section(audit.host.label, audit)
    yield from section("On a GPU", load_audit(RUNS / f"{ON_GPU}.json"))
    yield from ["", "## Twice the same", "", *twice()]
    yield from ["", "## How it grows", "", *growth()]


def _one_pair(audits: dict[str, Audit]) -> str:
    """What to say where memory was compared once, as it was at first."""
    old = [audit.host.label for audit in audits.values() if not audit.memory_noise_mib]
    if not old:
        return ""
    which = "all hosts here" if len(old) == len(audits) else ", ".join(old)
    return f" That is of one pair of calls for {which}, and may be more."


def section(title: str, audit: Audit) -> Iterator[str]:
    """All of one run."""
    yield from ["", f"## {title}", ""]
    yield from (f"- {line}" for line in make_verdict(audit))
    yield from ["", *markdown_table(COLUMNS, rows(audit)), "", _made(audit)]


def twice() -> Iterator[str]:
    """Whether two runs of one host agree."""
    pairs = compare_audits(*(load_audit(RUNS / f"{name}.json") for name in TWICE))
    agreeing = sum(pair.agrees for pair in pairs)
    yield (
        f"`{TWICE[0]}` and `{TWICE[1]}` are the same audit with other random orders: the intervals "
        f"of {agreeing} of {len(pairs)} figures overlap."
    )
    yield ""
    header = ("figure", "% of", "first run", "second run", "agree")
    cells = [
        (p.name, p.base, percent(p.first), percent(p.second), "yes" if p.agrees else "NO")
        for p in pairs
    ]
    yield from markdown_table(header, cells)


def growth() -> Iterator[str]:
    """The sweeps' tables, below their plot."""
    audit = load_audit(RUNS / f"{SWEEPS}.json")
    yield f"![time over batch, pixels and levels](added_latency.png) {audit.host.label}, tower."
    yield ""
    yield "An exponent of 1 is cost in proportion. Each sweep is one interleaved run."
    for sweep in audit.sweeps:
        yield from [
            "",
            f"### Over the {sweep.over}",
            "",
            *sweep_markdown(sweep, audit.processors_seen),
        ]
    yield from ["", _made(audit)]


def _made(audit: Audit) -> str:
    return describe(audit.environment) + former_heads(audit)


def table() -> None:
    """Writes the Markdown file, the plot and README's table from the run files."""
    audits = found()
    text = "\n".join(whole_file(audits)) + "\n"
    (HERE / "added_latency.md").write_text(text, encoding="utf-8")
    sweeps = load_audit(RUNS / f"{SWEEPS}.json").sweeps
    picture = Picture(figsize=(5 * len(sweeps), 4), layout="constrained")
    for axis, sweep in zip(picture.subplots(1, len(sweeps)), sweeps, strict=True):
        draw_sweep(axis, sweep)
    save(HERE / "added_latency.png", picture)
    readme = README.read_text(encoding="utf-8")
    marked = re.compile(re.escape(OPENS) + ".*?" + re.escape(CLOSES), re.DOTALL)
    README.write_text(marked.sub(lambda _: readme_section(audits), readme), encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", name] if name in PLANS:
            run(name)
        case ["table"]:
            table()
        case _:
            raise SystemExit(f"{__doc__}\nNAME: {', '.join(PLANS)}")

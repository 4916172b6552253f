"""Makes results/ladder.md and results/ladder/ladder.png from the run files, and nothing else.

    python results/ladder_table.py

Reads the runs of ``ladder.py`` in results/ladder/ (the small ladder) and results/ladder_full/ (the
full one), and the costs of ``ladder_cost.py``.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder_plot import draw
from ladder_text import ABOUT, ACTIVATIONS, COST, FULL, MADE, ON_GPU, SMALL

from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS

HERE = Path(__file__).resolve().parent
PLOT = HERE / "ladder" / "ladder.png"
SETS = ("libero", "kitchen")
COLUMNS = {
    "full": "224 px, equal steps",
    "steps": "112 px, equal steps",
    "time": "112 px, equal CPU time",
}
"""The full ladder, and the two columns of the small one."""
FILES = {"full": ("ladder_full", "steps"), "steps": ("ladder", "steps"), "time": ("ladder", "time")}
"""Of each column: the folder, and what its files' names say before the seed."""
METRICS = {
    "abs_rel": "AbsRel",
    "delta1": "delta1",
    "rmse": "RMSE (m)",
    "boundary_abs_rel": "boundary AbsRel",
}
PUBLISHED = ("spaceclip", "spaceclip-middle")

Run = dict[str, Any]


def main() -> None:
    """Writes both files."""
    runs = _read()
    costs = {
        device: json.loads((PLOT.parent / name).read_text(encoding="utf-8"))
        for device, name in (("cpu", "cost.json"), ("cuda", "cost_cuda.json"))
    }
    cost = costs["cpu"]
    text = [*_introduction(runs), *_costs(costs)]
    for column, title in COLUMNS.items():
        for data in SETS:
            text += [f"## {data}, {title}", "", *_table(runs, data, column, cost), ""]
    text += ["## The activation of `fast`", "", *_activations(runs), ""]
    text += ["## What had to hold", "", *_verdicts(runs, cost), ""]
    (HERE / "ladder.md").write_text("\n".join(text), encoding="utf-8")
    points = {
        (data, column, name): [run["metrics"] for run in found]
        for data in SETS
        for column in COLUMNS
        for name in RUNGS
        if (found := _of(runs, data, name, column))
    }
    draw(points, cost, PLOT)


def _read() -> list[Run]:
    """All runs, each with its column."""
    return [
        json.loads(path.read_text(encoding="utf-8")) | {"column": column}
        for column, (folder, kind) in FILES.items()
        for path in sorted((HERE / folder).glob(f"*-{kind}-seed*.json"))
    ]


def _of(runs: Sequence[Run], data: str, name: str, column: str) -> list[Run]:
    """The runs of a head. The published ones' equal steps are the measure of equal time."""
    column = "steps" if name in PUBLISHED and column == "time" else column
    return [r for r in runs if (r["data"], r["head"], r["column"]) == (data, name, column)]


def _values(runs: Sequence[Run], metric: str) -> list[float]:
    return [run["metrics"][metric] for run in runs]


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and deviation over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _introduction(runs: Sequence[Run]) -> list[str]:
    full = [run for run in runs if run["column"] == "full"]
    small = [run for run in runs if run["column"] != "full"]
    return [
        "# The ladder",
        "",
        *_filled(ABOUT),
        *_filled(FULL.format(**_facts(full))),
        *_filled(SMALL.format(**_facts(small))),
        "![error against added time](ladder/ladder.png)",
        "",
    ]


def _facts(runs: Sequence[Run]) -> dict[str, Any]:
    """What a ladder's runs say of themselves."""
    config, first = runs[0]["config"], runs[0]["circumstances"]
    gpu = f", {first['gpu']}" if first["gpu"] else ""
    made = {
        "runs": len(runs),
        "days": " to ".join(sorted({run["circumstances"]["created"][:10] for run in runs})),
        "commits": ", ".join(sorted({run["circumstances"]["commit"][:7] for run in runs})),
        "machine": f"{first['platform']}, {first['cpu']}, {first['cores']} cores{gpu}",
        "versions": ", ".join(f"{k} {v}" for k, v in first["versions"].items()),
    }
    return {
        "pixels": (config["input_size"] or config["output_size"])[0],
        "output": config["output_size"][0],
        "limit": config["data"]["train"][0]["limit"],
        "steps": config["steps"],
        "batch": config["batch_size"],
        "made": MADE.format(**made).strip(),
    }


def _filled(text: str) -> list[str]:
    """A paragraph's lines, and the empty one after it."""
    return [*textwrap.wrap(text.strip(), 100, break_long_words=False, break_on_hyphens=False), ""]


def _costs(costs: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Cost", ""]
    for device, cost in costs.items():
        seen = cost["circumstances"]
        facts = {
            "host": cost["host"],
            "where": seen["gpu"] or f"{seen['threads']} threads",
            "rounds": cost["rounds"],
            "day": seen["created"][:10],
            "load": seen["load"],
            "others_percent": cost["others_percent"],
            "milliseconds": 1e3 * cost["tower_seconds"]["median"],
            "gmac": cost["tower_gmac"],
        }
        lines += [
            *_filled(COST.format(**facts)),
            "| head | GMAC | parameters | added time |",
            "|---|---|---|---|",
            *(_cost_row(rung.title, cost["heads"][name]) for name, rung in RUNGS.items()),
            "",
            *(_filled(ON_GPU) if device == "cuda" else ()),
        ]
    return lines


def _cost_row(title: str, one: dict[str, Any]) -> str:
    share = one["added_share"]
    return (
        f"| {title} | {one['gmac']:.2f} | {one['parameters'] / 1e6:.2f} M | "
        f"{share['median']:.1%} ({share['low']:.1%} to {share['high']:.1%}) |"
    )


def _table(runs: Sequence[Run], data: str, column: str, cost: dict[str, Any]) -> list[str]:
    lines = [
        f"| head | seeds | images seen | CPU s | {' | '.join(METRICS.values())} | added CPU time |",
        "|---" * (5 + len(METRICS)) + "|",
    ]
    for name, rung in RUNGS.items():
        mine = _of(runs, data, name, column)
        if not mine:
            lines.append(f"| {rung.title} | 0 | not run |{' |' * (2 + len(METRICS))}")
            continue
        cells = [
            rung.title,
            str(len(mine)),
            f"{statistics.mean(run['images'] for run in mine):.0f}",
            "-" if column == "full" else f"{statistics.mean(r['cpu_seconds'] for r in mine):.0f}",
            *(_spread(_values(mine, metric)) for metric in METRICS),
            f"{cost['heads'][name]['added_share']['median']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _activations(runs: Sequence[Run]) -> list[str]:
    """`fast` with each activation that can't die: mean AbsRel and deviation over the seeds."""
    titles = {"fast": "`log` (the default)", **{n: rung.title for n, rung in VARIANTS.items()}}
    columns = [(data, column) for data in SETS for column in COLUMNS]
    heads = [f"{data}, {COLUMNS[column]}" for data, column in columns]
    lines = [f"| activation | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, title in titles.items():
        found = [_values(_of(runs, data, name, column), "abs_rel") for data, column in columns]
        cells = [_spread(values) if values else "not run" for values in found]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, "", *_filled(ACTIVATIONS)[:-1]]


def _verdicts(runs: Sequence[Run], cost: dict[str, Any]) -> list[str]:
    """What issue and README promise, from the figures above."""
    lines = []
    for name, limit in (("fast", 0.08), ("guided", 0.12)):
        share = cost["heads"][name]["added_share"]["median"]
        lines.append(
            f"- `{name}` adds {share:.1%} of the tower's time on two CPU cores, at most "
            f"{limit:.0%}: **{_said(share <= limit)}**."
        )
    for data in SETS:
        for column, title in COLUMNS.items():
            lines += _against_published(runs, data, column, title)
    return lines


def _against_published(runs: Sequence[Run], data: str, column: str, title: str) -> list[str]:
    found = {name: _of(runs, data, name, column) for name in (*PUBLISHED, "fast", "guided")}
    if not all(found.values()):
        return [f"- {data}, {title}: not all run."]
    best = min(PUBLISHED, key=lambda name: statistics.mean(_values(found[name], "abs_rel")))
    theirs, ours = _values(found[best], "abs_rel"), _values(found["fast"], "abs_rel")
    said = (
        f"- {data}, {title}: `fast` AbsRel {_spread(ours)} against {_spread(theirs)} of `{best}`: "
        f"mean no worse **{_said(statistics.mean(ours) <= statistics.mean(theirs))}**"
    )
    if len(ours) > 1 and len(theirs) > 1:
        smaller = statistics.stdev(ours) <= statistics.stdev(theirs)
        said += f", deviation no larger **{_said(smaller)}**"
    edge = "boundary_abs_rel"
    sharper = min(statistics.mean(_values(found[name], edge)) for name in PUBLISHED)
    change = statistics.mean(_values(found["guided"], edge)) / sharper - 1
    fast = (
        statistics.mean(_values(found["guided"], edge))
        / statistics.mean(_values(found["fast"], edge))
        - 1
    )
    said += (
        f". `guided` boundary AbsRel {change:+.0%} against the published head's better one "
        f"(-15% wanted): **{_said(change <= -0.15)}**; {fast:+.0%} against `fast`."
    )
    return [said]


def _said(holds: bool) -> str:
    return "holds" if holds else "missed"


if __name__ == "__main__":
    main()

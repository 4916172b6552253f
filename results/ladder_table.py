"""Makes results/ladder.md and results/ladder/ladder.png from the run files, and nothing else.

    python results/ladder_table.py

Reads the runs of ``ladder.py`` in results/ladder/ (the small ladder), results/ladder_long/ (its
longer runs), results/ladder_full/ (the full one) and the folders ``*_former`` (what our heads
were before), and the costs of ``ladder_cost.py``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder_plot import draw
from ladder_text import ACTIVATIONS, FORMER, costs_section, facts, filled, introduction
from spread import change_of_mean, share, spread

from clipdepth_plugin import DepthHead
from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS

HERE = Path(__file__).resolve().parent
PLOT = HERE / "ladder" / "ladder.png"
SETS = ("libero", "kitchen")
COLUMNS = {
    "full": "224 px, equal steps",
    "long": "112 px, ten times the steps",
    "steps": "112 px, equal steps",
    "time": "112 px, equal CPU time",
}
"""The full ladder, and what there is at 112 px."""
FILES = (
    ("full", "ladder_full", "steps"),
    ("long", "ladder_long", "steps"),
    ("steps", "ladder", "steps"),
    ("time", "ladder", "time"),
    ("long", "ladder_long_former", "steps"),
    ("steps", "ladder_former", "steps"),
    ("time", "ladder_former", "time"),
)
"""A column, a folder of runs of it, and what its files' names say before the seed."""
METRICS = {
    "abs_rel": "AbsRel",
    "delta1": "delta1",
    "rmse": "RMSE (m)",
    "boundary_abs_rel": "boundary AbsRel",
}
PUBLISHED = ("spaceclip", "spaceclip-middle")
HEADS = RUNGS | VARIANTS
RESIZED = "full"
"""The column in which the published head's maps were resized for the loss (``LATTICE``)."""

Run = dict[str, Any]


def main() -> None:
    """Writes both files."""
    runs, costs = found()
    (HERE / "ladder.md").write_text("\n".join(whole_file(runs, costs)), encoding="utf-8")
    points = {
        (data, column, name): [run["metrics"] for run in mine]
        for data in SETS
        for column in COLUMNS
        for name in RUNGS
        if (mine := of(runs, data, name, column))
    }
    draw(points, costs["cpu"], PLOT)


def found() -> tuple[list[Run], dict[str, Any]]:
    """All runs, each with its column; and the content of the cost files by device."""
    runs = [
        json.loads(path.read_text(encoding="utf-8")) | {"column": column}
        for column, folder, kind in FILES
        for path in sorted((HERE / folder).glob(f"*-{kind}-seed*.json"))
    ]
    costs = {
        device: json.loads((PLOT.parent / name).read_text(encoding="utf-8"))
        for device, name in (("cpu", "cost.json"), ("cuda", "cost_cuda.json"))
    }
    return runs, costs


def whole_file(runs: Sequence[Run], costs: Mapping[str, Any]) -> list[str]:
    """The lines of results/ladder.md."""
    ladders = {column: [run for run in runs if run["column"] == column] for column in COLUMNS}
    former = [run for run in runs if run["column"] != "full" and is_former(run)]
    small, long = (
        [run for column in columns for run in ladders[column] if not is_former(run)]
        for columns in (("steps", "time"), ("long",))
    )
    cost = costs["cpu"]
    text = [*introduction(ladders["full"], small, long), *costs_section(costs)]
    for column, title in COLUMNS.items():
        for data in SETS:
            text += [f"## {data}, {title}", "", *_table(runs, data, column, cost), ""]
    text += ["## The former heads", "", *filled(FORMER.format(**facts(former), **_lost(runs)))]
    text += [
        *_against_former(runs),
        "",
        "## The activation of `fast`",
        "",
        *_activations(runs, cost),
        "",
    ]
    return [*text, "## What had to hold", "", *_verdicts(runs, cost), ""]


def of(
    runs: Sequence[Run], data: str, name: str, column: str, *, former: bool = False
) -> list[Run]:
    """The runs of a head in a column.

    The published heads' runs of equal steps are the measure of equal time; of those that are not
    to be compared there are none.

    Args:
        runs: All.
        data: The set.
        name: Of the head.
        column: See ``COLUMNS``.
        former: Take those of the head as it was before, rather than as it is now (``FORMER``).
    """
    if _not_comparable(name, column):
        return []
    column = "steps" if name in PUBLISHED and column == "time" else column
    wanted = (data, name, column, former)
    return [r for r in runs if (r["data"], r["head"], r["column"], is_former(r)) == wanted]


def is_former(run: Run) -> bool:
    """Whether it is of a head of ours as it was before: with group norm."""
    return HEADS[run["head"]].kind is DepthHead and run["head_config"]["norm"] == "group"


def newest(runs: Sequence[Run], data: str, name: str, column: str) -> list[Run]:
    """Those of the head as it is now, if there are any."""
    return of(runs, data, name, column) or of(runs, data, name, column, former=True)


def _not_comparable(name: str, column: str) -> bool:
    return name in PUBLISHED and column == RESIZED


def _values(runs: Sequence[Run], metric: str) -> list[float]:
    return [run["metrics"][metric] for run in runs]


def _mean(runs: Sequence[Run], metric: str) -> float:
    return statistics.mean(_values(runs, metric))


def _table(runs: Sequence[Run], data: str, column: str, cost: dict[str, Any]) -> list[str]:
    lines = [
        f"| head | seeds | images seen | CPU s | {' | '.join(METRICS.values())} | added CPU time |",
        "|---" * (5 + len(METRICS)) + "|",
    ]
    for name, rung in RUNGS.items():
        mine = newest(runs, data, name, column)
        if not mine:
            why = "not comparable" if _not_comparable(name, column) else "not run"
            lines.append(f"| {rung.title} | 0 | {why} |{' |' * (2 + len(METRICS))}")
            continue
        cells = [
            rung.title + (", former" if is_former(mine[0]) else ""),
            str(len(mine)),
            f"{statistics.mean(run['images'] for run in mine):.0f}",
            "-" if column == "full" else f"{statistics.mean(r['cpu_seconds'] for r in mine):.0f}",
            *(spread(_values(mine, metric)) for metric in METRICS),
            "-" if is_former(mine[0]) else f"{cost['heads'][name]['added_share']['median']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against_former(runs: Sequence[Run]) -> list[str]:
    """Our two heads as they are and as they were, in the columns that have both."""
    lines = [
        "| | metric | `fast` | former | `guided` | former |",
        "|---|---|---|---|---|---|",
    ]
    for data in SETS:
        for column, title in COLUMNS.items():
            both = [
                of(runs, data, name, column, former=former)
                for name in ("fast", "guided")
                for former in (False, True)
            ]
            for metric in ("abs_rel", "boundary_abs_rel") if all(both) else ():
                cells = [f"{spread(_values(mine, metric))} ({len(mine)})" for mine in both]
                lines.append(f"| {data}, {title} | {METRICS[metric]} | {' | '.join(cells)} |")
    return lines


def _lost(runs: Sequence[Run]) -> dict[str, str]:
    """What each head lost on libero by the change, in equal steps and in equal time."""
    lost = {}
    for column in ("steps", "time"):
        changes = []
        for name in ("fast", "guided"):
            now, before = (
                _values(of(runs, "libero", name, column, former=former), "abs_rel")
                for former in (False, True)
            )
            changes.append(f"{change_of_mean(now, before).share:+.0%} (`{name}`)")
        lost[f"lost_{column}"] = " and ".join(changes)
    return lost


def _activations(runs: Sequence[Run], cost: Mapping[str, Any]) -> list[str]:
    """The former `fast` with each activation: mean AbsRel and deviation over the seeds."""
    titles = {"fast": "`log` (the default)", **{n: rung.title for n, rung in VARIANTS.items()}}
    lines = [f"| | {' | '.join(titles.values())} |", "|---" * (1 + len(titles)) + "|"]
    for data in SETS:
        for column, title in COLUMNS.items():
            values = [
                _values(of(runs, data, name, column, former=True), "abs_rel") for name in titles
            ]
            cells = [f"{spread(one)} ({len(one)})" if one else "not run" for one in values]
            lines.append(f"| {data}, {title} | {' | '.join(cells)} |")
    logs, bins = (
        [_values(of(runs, data, name, "full", former=True), "abs_rel") for data in SETS]
        for name in ("fast", "fast-bins")
    )
    gaps = [-change_of_mean(b, a).share for a, b in zip(logs, bins, strict=True)]
    spreads = [statistics.stdev(a) / statistics.mean(a) for a in logs]
    said = {
        "gaps": " and ".join(f"{gap:.0%} ({data})" for gap, data in zip(gaps, SETS, strict=True)),
        "spreads": " and ".join(f"{spread:.0%}" for spread in spreads),
        "log": share(cost["heads"]["fast"]["added_share"]),
        "bins": share(cost["heads"]["fast-bins"]["added_share"]),
    }
    return [*lines, "", *filled(ACTIVATIONS.format(**said))[:-1]]


def _verdicts(runs: Sequence[Run], cost: dict[str, Any]) -> list[str]:
    """What issue and README promise, from the figures above."""
    lines = []
    for name, limit, gmac in (("fast", 0.08, 0.9), ("guided", 0.12, 1.6)):
        one = cost["heads"][name]
        added = one["added_share"]
        sure = not added["low"] < limit < added["high"]
        lines.append(
            f"- `{name}` adds {share(added)} of the tower's time on two CPU cores, at most "
            f"{limit:.0%}: **{_said(added['median'] <= limit)}**"
            f"{'' if sure else ', the limit inside its interval'}. "
            f"It has {one['gmac']:.2f} GMAC, at most {gmac}, and "
            f"{one['parameters'] / 1e6:.2f} M parameters, at most 2.5 M: "
            f"**{_said(one['gmac'] <= gmac and one['parameters'] <= 2.5e6)}**."
        )
    for data in SETS:
        for column, title in COLUMNS.items():
            lines += _against_published(runs, data, column, title)
    return lines


def _against_published(runs: Sequence[Run], data: str, column: str, title: str) -> list[str]:
    found = {name: of(runs, data, name, column) for name in (*PUBLISHED, "fast", "guided")}
    published = [name for name in PUBLISHED if found[name]]
    if not published or not found["fast"] or not found["guided"]:
        return [f"- {data}, {title}: no run of the published head to compare with."]
    best = min(published, key=lambda name: _mean(found[name], "abs_rel"))
    theirs, ours = _values(found[best], "abs_rel"), _values(found["fast"], "abs_rel")
    said = (
        f"- {data}, {title}: `fast` AbsRel {spread(ours)} against {spread(theirs)} of `{best}`: "
        f"mean no worse **{_said(statistics.mean(ours) <= statistics.mean(theirs))}**"
    )
    if len(ours) > 1 and len(theirs) > 1:
        smaller = statistics.stdev(ours) <= statistics.stdev(theirs)
        said += f", deviation no larger **{_said(smaller)}**"
    edge = {name: _values(mine, "boundary_abs_rel") for name, mine in found.items() if mine}
    sharper = min(published, key=lambda name: statistics.mean(edge[name]))
    change, fast = (change_of_mean(edge["guided"], edge[name]) for name in (sharper, "fast"))
    error = "" if change.error is None else f" (standard error {change.error:.1%})"
    said += (
        f". `guided` boundary AbsRel {change.share:+.1%}{error} against the published head's "
        f"better one (-15% wanted): **{_said(change.share <= -0.15)}**; {fast.share:+.0%} against "
        "`fast`."
    )
    return [said]


def _said(holds: bool) -> str:
    return "holds" if holds else "missed"


if __name__ == "__main__":
    main()

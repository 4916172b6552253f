"""Makes results/ladder.md and results/ladder/ladder.png from the run files, and nothing else.

    python results/ladder_table.py

Reads the runs of ``ladder.py`` in results/ladder/ (the small ladder), results/ladder_float32/ (the
same in float32), results/ladder_long/ (its longer runs), results/ladder_full/ (the full one) and
the folders ``*_batch_norm`` and ``*_former`` (what our heads were before, with batch and with group
norm), and the costs of ``ladder_cost.py``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder_plot import draw
from ladder_runs import (
    COLUMNS,
    NORMS,
    PUBLISHED,
    SETS,
    Run,
    found,
    is_former,
    newest,
    norm_now,
    norm_of,
    not_comparable,
    of,
    run_columns,
)
from ladder_text import ACTIVATIONS, FORMER, costs_section, facts, filled, introduction
from spread import change_of_mean, share, spread

from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS

HERE = Path(__file__).resolve().parent
PLOT = HERE / "ladder" / "ladder.png"
METRICS = {
    "abs_rel": "AbsRel",
    "delta1": "delta1",
    "rmse": "RMSE (m)",
    "boundary_abs_rel": "boundary AbsRel",
}


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


def whole_file(runs: Sequence[Run], costs: Mapping[str, Any]) -> list[str]:
    """The lines of results/ladder.md."""
    ladders = {column: [run for run in runs if run["column"] == column] for column in COLUMNS}
    former = [run for run in runs if run["column"] != "full" and is_former(run)]
    small, float32, long = (
        [run for column in columns for run in ladders[column] if not is_former(run)]
        for columns in (("steps", "time"), ("steps32", "time32"), ("long",))
    )
    cost = costs["cpu"]
    text = [*introduction(ladders["full"], small, float32, long), *costs_section(costs)]
    for column, title in run_columns(runs).items():
        for data in SETS:
            text += [f"## {data}, {title}", "", *_table(runs, data, column, cost), ""]
    text += ["## The former heads", "", *filled(FORMER.format(**facts(former), **_lost(runs)))]
    text += [
        *_against_former(runs, "fast"),
        "",
        *_against_former(runs, "guided"),
        "",
        "## The activation of `fast`",
        "",
        *_activations(runs, cost),
        "",
    ]
    return [*text, "## What had to hold", "", *_verdicts(runs, cost), ""]


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
            why = "not comparable" if not_comparable(name, column) else "not run"
            lines.append(f"| {rung.title} | 0 | {why} |{' |' * (2 + len(METRICS))}")
            continue
        cells = [
            rung.title + _with_norm(mine),
            str(len(mine)),
            f"{statistics.mean(run['images'] for run in mine):.0f}",
            "-" if column == "full" else f"{statistics.mean(r['cpu_seconds'] for r in mine):.0f}",
            *(spread(_values(mine, metric)) for metric in METRICS),
            "-" if is_former(mine[0]) else f"{cost['heads'][name]['added_share']['median']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _with_norm(runs: Sequence[Run]) -> str:
    """What a head's name needs beside it where it is not the head as it is now."""
    return f", with {norm_of(runs[0])} norm" if is_former(runs[0]) else ""


def _against_former(runs: Sequence[Run], name: str) -> list[str]:
    """One of our heads as it is and as it was, in the columns that have two forms of it."""
    norms = NORMS[NORMS.index(norm_now(name)) :: -1]
    titles = [f"with {norm} norm".replace("none norm", "no norm") for norm in norms]
    lines = [f"| `{name}` | metric | {' | '.join(titles)} |", "|---" * (2 + len(norms)) + "|"]
    for data in SETS:
        for column, title in COLUMNS.items():
            forms = [of(runs, data, name, column, norm=norm) for norm in norms]
            for metric in ("abs_rel", "boundary_abs_rel") if sum(map(bool, forms)) > 1 else ():
                cells = [
                    f"{spread(_values(mine, metric))} ({len(mine)})" if mine else "not run"
                    for mine in forms
                ]
                lines.append(f"| {data}, {title} | {METRICS[metric]} | {' | '.join(cells)} |")
    return lines


def _lost(runs: Sequence[Run]) -> dict[str, str]:
    """What each lost on libero by batch norm for group norm, in equal steps and equal time."""
    lost = {}
    for column in ("steps", "time"):
        changes = []
        for name in ("fast", "guided"):
            now, before = (
                _values(of(runs, "libero", name, column, norm=norm), "abs_rel")
                for norm in ("batch", "group")
            )
            changes.append(f"{change_of_mean(now, before).share:+.0%} (`{name}`)")
        lost[f"lost_{column}"] = " and ".join(changes)
    return lost


def _activations(runs: Sequence[Run], cost: Mapping[str, Any]) -> list[str]:
    """`fast` with group norm and each activation: mean AbsRel and deviation over the seeds."""
    titles = {"fast": "`log` (the default)", **{n: rung.title for n, rung in VARIANTS.items()}}
    lines = [f"| | {' | '.join(titles.values())} |", "|---" * (1 + len(titles)) + "|"]
    for data in SETS:
        for column, title in COLUMNS.items():
            values = [
                _values(of(runs, data, name, column, norm="group"), "abs_rel") for name in titles
            ]
            if any(values):
                cells = [f"{spread(one)} ({len(one)})" if one else "not run" for one in values]
                lines.append(f"| {data}, {title} | {' | '.join(cells)} |")
    logs, bins = (
        [_values(of(runs, data, name, "full", norm="group"), "abs_rel") for data in SETS]
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
        for column, title in run_columns(runs).items():
            lines += _against_published(runs, data, column, title)
    return lines


def _against_published(runs: Sequence[Run], data: str, column: str, title: str) -> list[str]:
    found = {name: newest(runs, data, name, column) for name in (*PUBLISHED, "fast", "guided")}
    published = [name for name in PUBLISHED if found[name]]
    if not published:
        return [f"- {data}, {title}: no run of the published head to compare with."]
    said = f"- {data}, {title}:"
    if found["fast"]:
        said += f" {_no_worse(found, published)}"
    edge = {name: _values(mine, "boundary_abs_rel") for name, mine in found.items() if mine}
    sharper = min(published, key=lambda name: statistics.mean(edge[name]))
    change = change_of_mean(edge["guided"], edge[sharper])
    error = "" if change.error is None else f" (standard error {change.error:.1%})"
    said += (
        f" `guided`{_with_norm(found['guided'])}: boundary AbsRel {change.share:+.1%}{error} "
        f"against the published head's better one (-15% wanted): "
        f"**{_said(change.share <= -0.15)}**"
    )
    if found["fast"]:
        said += f"; {change_of_mean(edge['guided'], edge['fast']).share:+.0%} against `fast`"
    return [f"{said}."]


def _no_worse(found: Mapping[str, Sequence[Run]], published: Sequence[str]) -> str:
    """Whether `fast` is no worse than the published head's better form, and no less steady."""
    best = min(published, key=lambda name: _mean(found[name], "abs_rel"))
    theirs, ours = _values(found[best], "abs_rel"), _values(found["fast"], "abs_rel")
    said = (
        f"`fast`{_with_norm(found['fast'])}: AbsRel {spread(ours)} against {spread(theirs)} of "
        f"`{best}`: mean no worse **{_said(statistics.mean(ours) <= statistics.mean(theirs))}**"
    )
    if len(ours) > 1 and len(theirs) > 1:
        smaller = statistics.stdev(ours) <= statistics.stdev(theirs)
        said += f", deviation no larger **{_said(smaller)}**"
    return f"{said}."


def _said(holds: bool) -> str:
    return "holds" if holds else "missed"


if __name__ == "__main__":
    main()

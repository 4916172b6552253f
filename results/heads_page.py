"""heads.md and heads.png, from the run files and the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from heads_entries import ENTRIES
from heads_measure import IN_DOMAIN, NEVER_SEEN, Figures, Run

from clipdepth_plugin.evaluation.evaluate import Means
from clipdepth_plugin.evaluation.protocols import Alignment
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.latency.report import describe, markdown_table, share
from clipdepth_plugin.latency.schema import Added, Audit

SETS = (*IN_DOMAIN, *NEVER_SEEN)
TABLES: dict[str, tuple[Alignment, str]] = {
    "AbsRel": ("none", "abs_rel"),
    "AbsRel, median-aligned": ("median", "abs_rel"),
    "delta1": ("none", "delta1"),
    "RMSE, metres": ("none", "rmse"),
    "boundary AbsRel": ("none", "boundary_abs_rel"),
}
TICKS = (0, 5, 10, 20, 50, 100, 300)
CONSTANTS: dict[Alignment, str] = {"none": "the set's median", "median": "each picture's median"}
INTRODUCTION = """\
# Benchmark of heads

Made by `python results/heads.py --page` from the files of `heads_runs/`. All entries of a table are
trained on the same pictures in the same order by the same trainer, with the same loss, steps and
input size ([demo.yaml](../configs/demo.yaml)); head and peak learning rate are each entry's own
([heads_entries.py](heads_entries.py)). Weights are chosen on the validation sets. Figures are means
over the pictures of a set, then mean and standard deviation over the seeds. The focal length is
used where a set knows it. In domain: libero and rooms, other scenes than in training. Places never
seen: kitchen, real_mix, real_mix2, motorcycle.

- published: SPACE-CLIP's head (arXiv 2601.17657), activation `log` in place of its ReLU.
- DPT: transformers' neck and head, sized as Depth Anything V2's.
- linear probe: as DINOv2's on four levels (arXiv 2304.07193).
- ridge: ridge regression of log depth on the tokens of four levels, in closed form, on the sets
  whose scale counts.
- separate MobileNetV3: a network of its own that reads the pixels alone, trained from scratch, with
  a decoder after FastDepth (arXiv 1903.03273)."""

Value = Callable[[Figures], float | None]


def value_of(part: Literal["head", "constant"], alignment: Alignment, metric: str) -> Value:
    """Reads one figure of a set."""

    def value(figures: Figures) -> float | None:
        means: Means = getattr(figures, part)
        return means[alignment][metric]

    return value


def to_markdown(runs: Sequence[Run], cost: Audit | None) -> str:
    """The whole page; a section for each way in which runs were trained."""
    lines = [INTRODUCTION]
    for way in sorted({_way(run) for run in runs}, reverse=True):
        steps, batch, side = way
        chosen = [run for run in runs if _way(run) == way]
        lines += ["", f"## {side} px, {steps} steps of {batch}"]
        for title, (alignment, metric) in TABLES.items():
            lines += ["", f"### {title}", ""]
            constant = (CONSTANTS[alignment], value_of("constant", alignment, metric))
            lines += _table(chosen, value_of("head", alignment, metric), constant)
        lines += ["", "### ECE", "", *_table(chosen, lambda one: one.ece)]
        newest = max(chosen, key=lambda run: run.environment.created)
        lines += ["", f"The last of {len(chosen)} runs: {describe(newest.environment)}"]
    if cost is not None:
        lines += ["", *_cost_section(cost)]
    return "\n".join([*lines, ""])


def _way(run: Run) -> tuple[int, int, int]:
    return run.steps, run.batch_size, run.side


def _table(
    runs: Sequence[Run], value: Value, constant: tuple[str, Value] | None = None
) -> list[str]:
    """A row for each entry and one for the constant, a column for each set."""
    rows = []
    for name, entry in ENTRIES.items():
        own = [run for run in runs if run.entry == name]
        if own:
            cells = [mean_cell([value(run.sets[data]) for run in own]) for data in SETS]
            means = [_mean(run, value) for run in own]
            rows.append((entry.title, str(len(own)), *cells, mean_cell(means)))
    if constant is not None:
        title, of_constant = constant
        cells = [mean_cell([of_constant(runs[0].sets[data])]) for data in SETS]
        rows.append((title, "", *cells, mean_cell([_mean(runs[0], of_constant)])))
    return markdown_table(("", "seeds", *SETS, "mean of the never seen"), rows)


def _mean(run: Run, value: Value) -> float | None:
    """Of the sets never seen."""
    values = [value(run.sets[data]) for data in NEVER_SEEN]
    known = [x for x in values if x is not None]
    return fmean(known) if len(known) == len(values) else None


def mean_cell(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over the seeds."""
    known = [x for x in values if x is not None]
    if len(known) != len(values):
        return "-"
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if known[1:] else "")


def added(cost: Audit, name: str) -> Added:
    """What an entry adds to the tower; of a separate network its whole time."""
    figure = name if ENTRIES[name].separate else f"tower + {name}, eager"
    return cost.figure(figure).added[0]


def _cost_section(cost: Audit) -> list[str]:
    rows = []
    for name, entry in ENTRIES.items():
        found = added(cost, name)
        alone = cost.figure(name if entry.separate else f"head alone: {name}, eager")
        gmacs = "" if alone.gflops is None else f"{alone.gflops / 2:.2f}"
        time = f"{found.milliseconds.median:.1f}" if found.significant else "below the noise"
        rows.append((entry.title, time, share(found), gmacs))
    tower = cost.figure("tower alone")
    operations = "" if tower.gflops is None else f", {tower.gflops / 2:.2f} G multiply-adds"
    height, width = cost.settings.size
    method = (
        f"One interleaved run of {cost.settings.rounds} rounds, batch {cost.settings.batch}, "
        f"{height} x {width}, float32, eager; the tower alone takes {tower.p50_ms:.1f} "
        f"ms{operations}. Medians of paired differences; of the separate network its whole time."
    )
    return [
        "## Cost",
        "",
        method,
        "",
        *markdown_table(("", "adds ms", "in % of the tower", "G multiply-adds"), rows),
        "",
        "![Error against added time](heads.png)",
        "",
        describe(cost.environment),
    ]


def write_plot(path: Path, runs: Sequence[Run], cost: Audit) -> None:
    """Error on the places never seen against added time, of the way that most runs share."""
    from matplotlib.figure import Figure as Picture

    ways = [_way(run) for run in runs]
    shown = [run for run in runs if _way(run) == max(ways, key=ways.count)]
    picture = Picture(figsize=(8, 3.8), layout="constrained")
    axes = picture.subplots(1, 2)
    for axis, title in zip(axes, ("AbsRel", "AbsRel, median-aligned"), strict=True):
        value = value_of("head", *TABLES[title])
        for name in dict.fromkeys(run.entry for run in shown):
            means = [_mean(run, value) for run in shown if run.entry == name]
            known = [x for x in means if x is not None]
            share_percent = max(added(cost, name).percent.median, 0.0)
            axis.errorbar(
                share_percent, fmean(known), yerr=stdev(known) if known[1:] else None, fmt="o"
            )
            axis.annotate(name, (share_percent, fmean(known)), fontsize=7)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.set_xlabel("added time, % of the tower")
        axis.set_ylabel(f"{title}, mean of the sets never seen", fontsize=8)
    write_atomically(path, lambda file: picture.savefig(file, format="png", dpi=130))

"""The paragraphs of results/ladder.md, filled in from the run files; part of ladder_table.py."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ladder_runs import SETS, Run, of
from spread import FORMER_UNTIL, each, share, spread

from clipdepth_plugin.evaluation.ladder import RUNGS

ABOUT = """
The heads on one frozen tower (the `demo` host, ViT-S/14), with the same tokens, data, order and
augmentation (flips) for each seed; mean ± deviation over the seeds. The loss of all is SILog; the
published head has its auxiliary losses beside it, the others gradient matching (weight 2), as
DINOv2 trains its own. DPT is transformers' neck and head, as Depth Anything V2 sizes it; the probe
is after DINOv2's, with levels normalised and one context for all (5 D channels for its 8 D).
Trained on a set's train split, measured on its test split, each picture at its own size, raw scale;
the last weights. libero's test frames are other scenes; the kitchen's are other frames of the one
room that is trained on, no test of generalisation. Learning rates are each head's own, chosen by
one or two seeds of 300 steps at 112 px on frames held out of kitchen/train and on libero/val (the
published head's of 3e-4 and 1e-3, on kitchen alone; `fast` and `guided`: of 1e-3, 2e-3 and 4e-3,
and since of 5e-4, too, in 200 steps, which was better for `fast` on all these frames and not for
`guided`: the runs are of 1e-3; DPT: of 3e-4 and 1e-3, on kitchen alone; the probe's 4e-3 against an
earlier 1e-3); gradient matching's weight is the best of 0, 2 and 10 for `guided` there. They were
not chosen anew at 224 px, nor the higher ones when `fast` and `guided` changed (below). SILog's
weight of the mean is 0.85 for all; 0.15, as published, was tried late, with one seed: on frames
held out of the kitchen it was better for our heads and for the published one, in 200 steps on
libero worse for ours.
"""
FULL = """
**The full ladder**: {pixels} px (16 x 16 patches), maps of {output} x {output}, all frames of each
train split, {steps} steps of {batch} images on a GPU in bfloat16 autocast. That is 7 times
libero/train and 33 times kitchen/train, the learning rate down to nothing at the end. Whether they
have converged was not shown: no run was longer. Where a head has fewer than five seeds, the GPU
had to be given back before. Fourteen runs shared one GPU, so that their times say nothing: the
command is `python results/ladder.py train --config configs/ladder_full.yaml --seeds 5 --column
steps`, with `--head` and `--data` for each process. {made}
"""
SMALL = """
**The small ladder**: {pixels} px (8 x 8 patches), maps of {output} x {output}, at most {limit}
frames of each train split, {steps} steps of {batch} images for equal steps; for equal CPU time each
head gets what the published one (middle levels) took for those, on one thread in bfloat16 autocast.
`fast` and `guided`, whose norms were taken out last (below), ran in equal steps only, on a
processor without instructions for bfloat16, whose seconds are not to be compared with the others';
for their equal time see below. In the table of equal time they have batch norm; the machine was
slower then, beside other work, and they have fewer steps than the former ones had. **Nothing in it
is trained to convergence.** The command is `python results/ladder.py train`. {made}
"""
FLOAT32 = """
**The same in float32**, for equal time of today's `fast` and `guided`: the machine at hand has no
instructions for bfloat16 and takes eight times as long with it. There the published head (middle
levels) was trained again, {steps} steps of {batch}, so that its time is the same machine's, {seeds}
seeds; the peers were not. In equal steps float32 and bfloat16 give {precisions}. The command is
`python results/ladder.py train --config configs/ladder_float32.yaml --head spaceclip-middle --head
fast --head guided`. {made}
"""
LATTICE = """
**The full ladder's runs of the published head are not to be compared with.** On this tower its maps
are 256 x 256; for the loss they were resized to 224 x 224, and they were measured at the pictures'
own sizes. Where its last ReLU is dead at one of the four phases of its last upsampling, the resize
hides that and the neighbours learn to make up for it; read at 256 x 256, every fourth pixel is 0 m
and the others are too far. A run of 250 steps, made again to look, had just that. The run files
show it too: rms log errors of up to {worst:.1f} on libero, where those of `fast` are at most
{ours:.2f}. At 112 px maps are not resized for the loss. `configs/ladder_256.yaml` trains all heads
at 224 px on maps of 256 x 256; it has not run, for want of a GPU: `python results/ladder.py train
--config configs/ladder_256.yaml --seeds 5 --column steps`.
"""
LONG = """
**Its longer runs**: the same with {steps} steps, {images} images as in the full ladder. Up to three
seeds; of the published head the form that is better at 112 px, as it takes {minutes} minutes of a
core, of the peers none, and `fast` and `guided` with batch norm, as they were then. The command is
`python results/ladder.py train --config configs/ladder_long.yaml --column steps --seeds 3`, with
`--head` for each. {made}
"""
MADE = """
{runs} runs, {days}; commit {commits}. Machine: {machines}. Versions: {versions}.
"""
COST = """
On {host}, batch 1, float32, eager, {where}, {rounds} interleaved rounds ({day}, commit {commit},
load before {load}): the tower took {milliseconds:.1f} ms and {gmac:.1f} GMAC. Added time is the
median of the paired differences over the tower's own time, with its 95% interval. Others took
{others_percent:.1f}% of the processors' time meanwhile.
"""
COST_OF_FORMER = """
`fast` and `guided` are the former ones, with group norm, in this table.
"""
ON_GPU = """
In eager mode a GPU waits for the processor that launches, for the tower as for the heads: what
counts there is the number of launches, and the limits of 8% and 12%, which are of a CPU, are far.
In a CUDA graph (`head.fused()`) `fast` and `guided` add less:
[added_latency.md](added_latency.md#on-a-gpu), [kernels.md](kernels.md).
"""
FORMER = """
Until 2026-11-26 `fast` and `guided` had group norm, and their runs at 224 px are still those. Group
norm takes each picture's own scale out of every map, and how far away things are shows in that
scale. `guided` also had a stem of 48 channels and did not compare pixels (`likeness_channels`).
Both changes were chosen on frames held out of kitchen/train and on libero/val, one seed. Then both
had batch norm, which in training hides much of that scale, too, in batches of four, and is another
function in inference. On 2026-11-27 **they lost their norms**, with He's initialisation in their
place, and their level norms begin with the scale and shift after which each channel of the tokens
has mean 0 and deviation 1 (`head.standardise`). Both were chosen on three sets of frames held out
of kitchen/train and on libero/val, 200 steps, one or two seeds. `guided` without norms: errors at
edges were 2% to 10% lower in the kitchen and more on libero/val; with the begin of the level norms
libero/val gained another 6%, two of the kitchen's three lost 2% to 3%. `fast` without norms: AbsRel
was 18% lower on libero/val, in the kitchen between 3% lower and 3% higher; with the begin of the
level norms 28% lower on libero/val, 1% to 2% lower in the kitchen; with that begin and batch norm
as before. Tried for `guided` with them, and not better: batch renormalisation, layer norm of each
position's channels, batch norm of the tokens, and batch norm whose statistics are held from a
tenth, a quarter or half of the run on, which was nearly as good. (On 2026-11-27 `guided` also had
its image part joined by a convolution of 3 x 3, `join_kernel`, in place of 1 x 1, with the same
errors; those runs are in the history up to commit 2f3158a.) Below are means and deviations on the
test frames, the number of seeds in brackets. From group to batch norm libero's AbsRel changed by
{lost_steps} in equal steps, and by {lost_time} in equal time, where the heads with group norm also
had more steps, as the machine was faster then. The cost of the heads with group norm on this CPU
was not kept. The former heads' runs, those with other activations among them: {made}
"""
ACTIVATIONS = """
All of these are of `fast` with group norm. At 224 px `bins` has {gaps} less error than `log`, whose
own seeds deviate by {spreads}. For another default a gain on both sets beyond the seeds' deviation
would have been wanted. On the CPU today's `fast` adds {bins} of the tower's time with `bins`,
{log} with `log`. `softplus` can still die: below the loss's least
depth it has no gradient. Until commit 0713b7a, in all runs but the longer ones, the bins'
expectation (and the probe's) was taken in bfloat16 in training.
"""


def introduction(
    full: Sequence[Run],
    small: Sequence[Run],
    float32: Sequence[Run],
    long: Sequence[Run],
) -> list[str]:
    """What the ladders are, to the plot."""
    return [
        "# The ladder",
        "",
        *filled(ABOUT),
        *filled(FULL.format(**facts(full))),
        *filled(LATTICE.format(worst=_worst(full, "spaceclip"), ours=_worst(full, "fast"))),
        *filled(SMALL.format(**facts(small))),
        *(_float32(small, float32) if float32 else ()),
        *filled(LONG.format(**facts(long), minutes=_minutes(long, "spaceclip"))),
        "![error against added time](ladder/ladder.png)",
        "",
    ]


def _minutes(runs: Sequence[Run], head: str) -> str:
    """CPU time of a head's runs, from the shortest to the longest."""
    seconds = [float(run["cpu_seconds"]) for run in runs if run["head"].startswith(head)]
    return f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f}"


def _float32(small: Sequence[Run], float32: Sequence[Run]) -> list[str]:
    said = {"precisions": _precisions(small, float32), "seeds": len({r["seed"] for r in float32})}
    return filled(FLOAT32.format(**facts(float32), **said))


def _precisions(small: Sequence[Run], float32: Sequence[Run]) -> str:
    """What our heads are judged by, in equal steps, in float32 and in bfloat16."""
    said = []
    for name, metric, what in (
        ("fast", "abs_rel", "an AbsRel"),
        ("guided", "boundary_abs_rel", "a boundary AbsRel"),
    ):
        for data in SETS:
            both = [
                spread([run["metrics"][metric] for run in of(runs, data, name, column)])
                for runs, column in ((float32, "steps32"), (small, "steps"))
            ]
            said.append(f"`{name}` {what} of {both[0]} and {both[1]} ({data})")
    return ", ".join(said)


def _worst(runs: Sequence[Run], head: str) -> float:
    """The largest rms log error of a head's forms on libero."""
    mine = [run for run in runs if run["data"] == "libero" and run["head"].startswith(head)]
    return max(float(run["metrics"]["rmse_log"]) for run in mine)


def facts(runs: Sequence[Run]) -> dict[str, Any]:
    """What a ladder's runs say of themselves."""
    config = runs[0]["config"]
    seen = sorted((run["circumstances"] for run in runs), key=lambda one: one["created"])
    made = {
        "runs": len(runs),
        "days": each(one["created"][:10] for one in seen),
        "commits": each(one["commit"][:7] for one in seen),
        "machines": each(_machine(one) for one in seen),
        "versions": each(", ".join(f"{k} {v}" for k, v in one["versions"].items()) for one in seen),
    }
    return {
        "pixels": (config["input_size"] or config["output_size"])[0],
        "output": config["output_size"][0],
        "limit": config["data"]["train"][0]["limit"],
        "steps": config["steps"],
        "batch": config["batch_size"],
        "images": runs[0]["images"],
        "made": MADE.format(**made).strip(),
    }


def _machine(seen: Mapping[str, Any]) -> str:
    gpu = f", {seen['gpu']}" if seen["gpu"] else ""
    return f"{seen['platform']}, {seen['cpu']}, {seen['cores']} cores{gpu}"


def filled(text: str) -> list[str]:
    """A paragraph's lines, and the empty one after it."""
    return [*textwrap.wrap(text.strip(), 100, break_long_words=False, break_on_hyphens=False), ""]


def costs_section(costs: Mapping[str, Any]) -> list[str]:
    """What each head costs, on each device that was measured."""
    lines = ["## Cost", ""]
    for device, cost in costs.items():
        seen = cost["circumstances"]
        facts = {
            "host": cost["host"],
            "where": seen["gpu"] or f"{seen['threads']} threads",
            "rounds": cost["rounds"],
            "day": seen["created"][:10],
            "commit": seen["commit"][:7],
            "load": seen["load"],
            "others_percent": cost["others_percent"],
            "milliseconds": 1e3 * cost["tower_seconds"]["median"],
            "gmac": cost["tower_gmac"],
        }
        lines += [
            *filled(COST.format(**facts)),
            "| head | GMAC | parameters | added time |",
            "|---|---|---|---|",
            *(_cost_row(rung.title, cost["heads"][name]) for name, rung in RUNGS.items()),
            "",
            *(filled(ON_GPU) if device == "cuda" else ()),
            *(filled(COST_OF_FORMER) if seen["created"] < FORMER_UNTIL else ()),
        ]
    return lines


def _cost_row(title: str, one: dict[str, Any]) -> str:
    parameters = f"{one['parameters'] / 1e6:.2f} M"
    return f"| {title} | {one['gmac']:.2f} | {parameters} | {share(one['added_share'])} |"

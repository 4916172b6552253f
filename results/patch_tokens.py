"""What plugin.tokens() and DepthTokens add to a tower: about 3 minutes on two cores.

    python results/patch_tokens.py             # patch_tokens.md and patch_tokens.json

The audit's rounds: every variant once a round, in an order that is reversed each second round, and
the baseline twice. Tokens are read of a pass whose depth has been read: they are what is added to
depth. Hosts and heads have random weights; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.latency.rounds import Variant, run_rounds, timer_for
from clipdepth_plugin.latency.subject import make_subject
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.depth_tokens import DepthTokens
from clipdepth_plugin.plugin.depth_tokens_config import DepthTokensConfig

HERE = Path(__file__).resolve().parent
HOSTS = ("vit-b-16", "so400m-14")
FOCAL = 300.0
WIDTH = 1024  # of a language model
CALLS = 10
"""A call of some microseconds is timed ten times in a row."""
HEADER = ("host", "tower, ms", "tower again", "`tokens()`", "`tokens(2)`", "`DepthTokens`' own MLP")
INTRODUCTION = """\
# Patch tokens

Made by `python results/patch_tokens.py`. Of a pass whose depth has been read: the time of
`plugin.tokens(focal_px=...)`, of that at merged squares, and of the MLP of `DepthTokens` (hidden
256, width 1024) in % of the tower's: medians over rounds with their bootstrap 95% interval. `fast`
head with confidence, batch 1, float32.
"""


def repeated(call: Callable[[], object]) -> Callable[[], object]:
    """Some calls in a row."""

    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


def variants_of(plugin: DepthPlugin, tower: Callable[[], object]) -> list[Variant]:
    """The tower, and what is read of its pass."""
    tower()
    assert plugin.depth.isfinite().all()
    tokens = DepthTokens(DepthTokensConfig(width=WIDTH, confidence=True)).eval()
    five: Any = plugin.tokens(focal_px=FOCAL)
    (one,) = [plugin._pass()]  # later passes of the tower leave it as it is
    return [
        Variant("alone", tower),
        Variant("again", tower),
        Variant("tokens", repeated(lambda: one.tokens(focal_px=FOCAL))),
        Variant("merged", repeated(lambda: one.tokens(2, focal_px=FOCAL))),
        Variant("mlp", repeated(lambda: tokens(five))),
    ]


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds and percent of one host."""
    loaded = load_host(f"config:{name}")
    subject = make_subject(loaded.model, label=loaded.label, scope="tower")
    head = DepthHead.for_host(subject.model, preset="fast", confidence=True).eval()
    tower = subject.baselines[0].call
    with torch.no_grad(), attach(subject.model, head) as plugin:
        variants = variants_of(plugin, tower)
        times = run_rounds(variants, rounds, timer_for("cpu"), warmup=2)
    for variant in ("tokens", "merged", "mlp"):
        times[variant] = times[variant] / CALLS
    return {
        "host": loaded.label,
        "ms": {key: vars(median_interval(1e3 * value)) for key, value in times.items()},
        "percent": {
            key: vars(median_interval(100 * value / times["alone"])) for key, value in times.items()
        },
    }


def page(measured: dict[str, Any]) -> str:
    """The whole file."""
    cells = []
    for one in measured["hosts"]:
        shares = [one["percent"][key] for key in ("again", "tokens", "merged", "mlp")]
        shown = [f"{x['median']:.3g}% [{x['low']:.3g}, {x['high']:.3g}]" for x in shares]
        cells.append((one["host"], f"{one['ms']['alone']['median']:.0f}", *shown))
    lines = [INTRODUCTION, *markdown_table(HEADER, cells), "", measured["described"], ""]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measures, and writes both files when all hosts are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    command = ("python", "results/patch_tokens.py", *arguments)
    environment = describe_environment(command, torch.device("cpu"), "float32")
    hosts = [measure(name, options.rounds) for name in options.hosts]
    measured = {
        "rounds": options.rounds,
        "environment": environment.model_dump(mode="json"),
        "described": f"{options.rounds} rounds. {describe(environment)}",
        "hosts": hosts,
    }
    text = json.dumps(measured, indent=1)
    (options.output / "patch_tokens.json").write_text(text + "\n", encoding="utf-8")
    (options.output / "patch_tokens.md").write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

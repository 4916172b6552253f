"""What the heads of the ladder cost on ViT-B/16 at 224: operations, parameters, added time.

    python results/ladder_cost.py            # results/ladder/cost.json
    python results/ladder_cost.py --device cuda

Batch 1, float32, eager, random weights. The tower alone and the tower with each head's depth run
interleaved in rounds; the added share is the median over the rounds of (with - alone) / alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from clipdepth_plugin import DepthHead, DepthPlugin, TowerFeatures
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.circumstances import describe_circumstances
from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS
from clipdepth_plugin.features import one_size
from clipdepth_plugin.latency.bases import make_pixels, tower_base
from clipdepth_plugin.latency.flops import count_gflops
from clipdepth_plugin.latency.hosts import load_bench_host
from clipdepth_plugin.latency.intervals import compare, median_interval
from clipdepth_plugin.latency.memory import keep_freed_memory
from clipdepth_plugin.latency.other_work import with_other_work
from clipdepth_plugin.latency.plan import Switch
from clipdepth_plugin.latency.rounds import Variant, run_rounds
from clipdepth_plugin.latency.timers import timer_for
from clipdepth_plugin.plugin import attach

HOST = "config:vit-b-16"
CONTROL = "tower again"


def main() -> None:
    """Measures all heads in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    circumstances = describe_circumstances(
        ("python", "results/ladder_cost.py", *sys.argv[1:]), options.device
    )
    label, host = load_bench_host(HOST)
    tower = choose_tower(host.to(options.device))
    base = tower_base(tower, make_pixels(tower, 1))
    variants = [Variant("tower", base.call), Variant(CONTROL, base.call)]
    heads: dict[str, DepthHead] = {}
    features: dict[str, TowerFeatures] = {}
    for name, rung in (RUNGS | VARIANTS).items():
        heads[name] = rung.make(host).to(options.device).eval()
        plugin = attach(host, heads[name])
        switch = Switch(plugin)
        features[name] = one_size(plugin.features(make_pixels(tower, 1)))
        call = partial(_with_depth, base.call, plugin)
        variants.append(Variant(name, call, switch.on, switch.off))
    with torch.no_grad():
        timer = timer_for(options.device)
        seconds, others = with_other_work(lambda: run_rounds(variants, options.rounds, timer))
    alone = seconds["tower"]
    noise = compare(seconds[CONTROL], alone)
    found = {
        name: {
            "gmac": count_gflops(partial(head, features[name])) / 2,
            "parameters": sum(p.numel() for p in head.parameters() if p.requires_grad),
            "added_seconds": asdict(compare(seconds[name], alone, seconds[CONTROL]).difference),
            "added_share": asdict(median_interval((seconds[name] - alone) / alone)),
        }
        for name, head in heads.items()
    }
    content = {
        "format": "clipdepth-ladder-cost/1",
        "circumstances": circumstances.model_dump(mode="json"),
        "host": label,
        "rounds": options.rounds,
        "tower_gmac": count_gflops(base.call) / 2,
        "tower_seconds": asdict(median_interval(alone)),
        "others_percent": others,
        "noise": asdict(noise.difference),
        "heads": found,
    }
    device = torch.device(options.device).type
    name = "cost.json" if device == "cpu" else f"cost_{device}.json"
    path = Path(__file__).resolve().parent / "ladder" / name
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, one in found.items():
        print(name, one["gmac"], one["parameters"], one["added_share"], flush=True)


def _with_depth(tower_pass: object, plugin: DepthPlugin) -> None:
    assert callable(tower_pass)
    tower_pass()
    _ = plugin.depth


if __name__ == "__main__":
    main()

"""Measures what depth adds to an exported tower in onnxruntime: about 3 minutes on two cores.

    python results/exported_latency.py         # exported_latency.md and exported_latency.json

Run it with everything else on the machine stopped. Host (ViT-B/16 layout, 224 x 224) and heads have
random weights. One interleaved run: in each round every file runs once, in an order that rotates.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from clipdepth_plugin import DepthHead, DepthTower
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.exporting.graphs import Exported, TowerAlone, TowerGraph, export_graph
from clipdepth_plugin.exporting.onnx_format import Onnx
from clipdepth_plugin.exporting.plan import OPSET
from clipdepth_plugin.latency.intervals import Interval, median_interval

HERE = Path(__file__).resolve().parent
HOST, SIZE, PRESETS = "config:vit-b-16", (224, 224), ("fast", "guided", "spaceclip")
ALONE, AGAIN = "tower alone", "tower alone, again"
BOUND = 5.0
"""Per cent that depth of ``fast`` may add."""


INTRODUCTION = """\
# Depth beside an exported tower

Made by `python results/exported_latency.py`. ViT-B/16 layout, 224 x 224, batch 1, float32,
onnxruntime {} on the CPU, {} threads; random weights. One interleaved run of {} rounds: medians of
paired differences to the tower alone in % of its time, with their bootstrap 95% interval. `again`
is the same file a second time: the noise.

| file | median ms | added % |
| --- | --- | --- |"""


def session_of(graph: TowerGraph, folder: Path, threads: int) -> Any:
    """An exported graph in onnxruntime."""
    example = graph.inputs_of(torch.zeros(1, 3, *SIZE), torch.ones(1))
    exported: Exported = export_graph(graph, example, dynamic_batch=False)
    path = Onnx().write(exported, folder, OPSET).path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sessions(threads: int) -> dict[str, Any]:
    """Every file that is timed; the tower alone twice, which shows the noise."""
    host: nn.Module = load_host(HOST).model
    made: dict[str, Any] = {}
    for preset in PRESETS:
        torch.manual_seed(0)
        head = DepthHead.for_host(host, preset).eval()
        depth_tower = DepthTower(host, head, example=torch.zeros(1, 3, *SIZE), native=True)
        kinds: dict[str, type[TowerGraph]] = {f"tower + {preset}": TowerGraph}
        if not made:
            kinds = {ALONE: TowerAlone, AGAIN: TowerAlone, **kinds}
        for name, kind in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                made[name] = session_of(kind(depth_tower), Path(folder), threads)
    return made


def timed(made: dict[str, Any], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Milliseconds of each file in each round."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in made}
    names = list(made)
    for index in range(warmup + rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            begin = time.perf_counter()
            made[name].run(None, {"pixel_values": pixels})
            if index >= warmup:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def added(times: dict[str, list[float]], name: str) -> Interval:
    """Median of the paired differences to the tower alone in per cent, with its 95% interval."""
    base = np.array(times[ALONE])
    return median_interval((np.array(times[name]) - base) / base * 100)


def page(times: dict[str, list[float]], threads: int, rounds: int) -> str:
    """The table."""
    lines = [INTRODUCTION.format(onnxruntime.__version__, threads, rounds)]
    for name, values in times.items():
        of = added(times, name)
        share = "" if name == ALONE else f"{of.median:+.2f} ({of.low:+.2f} to {of.high:+.2f})"
        lines.append(f"| {name} | {np.median(values):.1f} | {share} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measures, writes both files, and says whether ``fast`` stays within its bound."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=HERE)
    given = parser.parse_args(arguments)
    times = timed(sessions(given.threads), given.rounds, warmup=3)
    figures = {
        name: {"ms": values, "added_percent": asdict(added(times, name))}
        for name, values in times.items()
    }
    environment = describe_environment(("python", "results/exported_latency.py")).model_dump()
    tree = {"environment": environment, "host": HOST, "figures": figures}
    text = page(times, given.threads, given.rounds)
    (given.folder / "exported_latency.json").write_text(json.dumps(tree, indent=1) + "\n")
    (given.folder / "exported_latency.md").write_text(text)
    print(text)
    return 0 if added(times, "tower + fast").median <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measures what depth adds to a request's vision pass in vLLM: about 5 minutes on two cores.

    VLLM_VENV/bin/python results/vllm_latency.py    # writes vllm_latency.md and .json

Runs in the environment of `make test-vllm`, with everything else on the machine stopped. The host
is a LLaVA with a tower of ViT-B/16's size and a small language model, of random weights, in the
real engine on vLLM's CPU platform. One interleaved run: see docs/cost.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.remove(str(HERE)) if str(HERE) in sys.path else None
importlib.import_module("tests.vllm.conftest")  # the engine's environment

import torch  # noqa: E402

from clipdepth_plugin import DepthHead  # noqa: E402
from clipdepth_plugin.environment import describe_environment  # noqa: E402
from clipdepth_plugin.latency.intervals import compare, median_interval  # noqa: E402
from clipdepth_plugin.latency.rounds import Variant, run_rounds  # noqa: E402
from clipdepth_plugin.serving.vllm import EXTENSION, generate_with_depth  # noqa: E402
from tests.vllm.engines import engine, host_of, picture, prompt  # noqa: E402
from tests.vllm.models import base_sized  # noqa: E402

PRESETS = ("fast", "spaceclip")


def measure(  # noqa: C901 - the calls of one table
    llm: Any, heads: dict[str, Path], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by scope and variant: of the vision pass, and of the request with its answer read."""
    from vllm import SamplingParams

    runner = llm.collective_rpc(_runner)[0]
    inside: list[float] = []
    plain = runner._execute_mm_encoder

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        out = plain(*args, **kwargs)
        inside.append(time.perf_counter() - begun)
        return out

    runner._execute_mm_encoder = timed
    shown = prompt(base_sized(), picture(1, (224, 224)))
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    wholes: dict[str, list[float]] = {}

    def variant(name: str, head: Path | None) -> Variant:
        def before() -> None:
            llm.llm_engine.reset_encoder_cache()
            llm.reset_prefix_cache()
            if head is not None:
                llm.collective_rpc("clipdepth_attach", args=({"heads": [str(head)]},))

        def call() -> None:
            if head is None:
                llm.generate([shown], sampling, use_tqdm=False)
            else:
                generate_with_depth(llm, [shown], sampling, use_tqdm=False)

        def after() -> None:
            llm.collective_rpc("clipdepth_detach")

        return Variant(name, call, before, after)

    variants = [variant("alone", None), variant("again", None)]
    variants += [variant(name, head) for name, head in heads.items()]

    # A timer knows no names: each variant's call notes its own.
    def named(one: Variant) -> Variant:
        def call() -> None:
            begun = time.perf_counter()
            one.call()
            wholes.setdefault(one.name, []).append(time.perf_counter() - begun)

        return Variant(one.name, call, one.before, one.after)

    def timer(call: Callable[[], object]) -> float:
        inside.clear()
        call()
        return sum(inside)

    passes = run_rounds([named(one) for one in variants], rounds, timer)
    return {
        "vision pass": {name: [*map(float, x)] for name, x in passes.items()},
        "request": {name: x[-rounds:] for name, x in wholes.items()},
    }


def _runner(worker: Any) -> Any:
    return worker.model_runner


def rows(seconds: dict[str, dict[str, list[float]]]) -> list[str]:
    """The table."""
    lines = ["| scope | with | ms | added, ms | added, % |", "|---|---|---|---|---|"]
    for scope, by_name in seconds.items():
        values = {name: torch.tensor(x).double().numpy() for name, x in by_name.items()}
        for name, some in values.items():
            median = median_interval(some).scaled(1e3)
            if name in ("alone", "again"):
                lines.append(f"| {scope} | {name} | {median} | | |")
                continue
            found = compare(some, values["alone"], values["again"])
            noise = "" if found.significant else " (below the noise floor)"
            percent = found.ratio.scaled(100.0, shift=-1.0)
            added = found.difference.scaled(1e3)
            lines.append(f"| {scope} | {name} | {median} | {added}{noise} | {percent} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=HERE)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = {"worker_extension_cls": EXTENSION, "max_num_batched_tokens": 2048}
        with engine(base_sized(), folder, max_model_len=512, **options) as llm:
            heads = {}
            for preset in PRESETS:
                head = DepthHead.for_host(host_of(llm), preset, context="mean").eval()
                head.save_pretrained(folder / preset)
                heads[preset] = folder / preset
            seconds = measure(llm, heads, given.rounds)
    about = describe_environment(["python", "results/vllm_latency.py"]).model_dump(mode="json")
    table = "\n".join(rows(seconds))
    load = os.getloadavg()[0]
    text = f"""\
# What depth adds to a request in vLLM

Made by `python results/vllm_latency.py` in the environment of `make test-vllm`, {given.rounds}
rounds, vLLM's CPU platform, float32; load of the machine {load:.1f}. LLaVA with a tower of
ViT-B/16's size (12 blocks of width 768, one picture of 224 x 224) and a small language model (2
layers of width 64), random weights. "vision pass": the engine's own call that encodes a request's
picture, with depth computed inside; "request": 8 tokens, the answer and its depth read. "again" is
the engine alone a second time: the noise. Intervals: of the median, 95%.

{table}
"""
    stored = {"environment": about, "rounds": given.rounds, "load": load, "seconds": seconds}
    (given.folder / "vllm_latency.json").write_text(json.dumps(stored, indent=1) + "\n")
    (given.folder / "vllm_latency.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

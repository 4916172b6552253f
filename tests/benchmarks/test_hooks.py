"""What the hooks cost, without a head: `make bench` times these, `make test` runs each once.

The ratio to the tower alone is taken in one run, interleaved pair by pair, so that drift of a
shared machine cancels; `extra_info` holds it with its spread.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach


@pytest.fixture(scope="module")
def vit_b_16() -> nn.Module:
    """ViT-B/16 at 224; latency does not depend on the weights' values."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    tower: nn.Module = CLIPVisionModel(config)
    return tower.eval()


@pytest.fixture(scope="module")
def head(vit_b_16: nn.Module) -> DepthHead:
    return DepthHead.for_host(vit_b_16).eval()


def paired_ratios(
    plugin: DepthPlugin, alone: Callable[[], Any], beside: Callable[[], Any], pairs: int
) -> dict[str, float]:
    """Median of beside / alone over interleaved pairs, with its bootstrap 95% interval.

    The order alternates. ``alone`` is timed with the plug-in detached; detaching is not timed.
    """
    ratios = []
    for i in range(pairs):
        times = {}
        for call in (alone, beside) if i % 2 == 0 else (beside, alone):
            if call is alone:
                plugin.detach()
            start = time.perf_counter()
            call()
            times[call] = time.perf_counter() - start
            if call is alone:
                plugin.attach()
        ratios.append(times[beside] / times[alone])
    low, middle, high = statistics.quantiles(ratios, n=4)
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(ratios, k=pairs)) for _ in range(2000))
    return {
        "median": middle,
        "low95": medians[49],
        "high95": medians[1949],
        "q25": low,
        "q75": high,
        "pairs": float(pairs),
    }


def told(name: str, ratio: dict[str, float]) -> str:
    interval = f"95% {ratio['low95']:.4f} to {ratio['high95']:.4f}"
    quartiles = f"quartiles {ratio['q25']:.4f} to {ratio['q75']:.4f}"
    return f"{name}: {ratio['median']:.4f} ({interval}; {quartiles}; {ratio['pairs']:.0f} pairs)"


def test_hooks_without_a_head(
    benchmark: BenchmarkFixture,
    vit_b_16: nn.Module,
    head: DepthHead,
    report: Callable[[str], None],
) -> None:
    """Tower with taps on the seven published levels against the tower alone."""
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(vit_b_16, head) as plugin:
        if benchmark.enabled:
            ratio = paired_ratios(plugin, lambda: vit_b_16(x), lambda: vit_b_16(x), pairs=300)
            benchmark.extra_info["tapped / alone"] = ratio
            report(told("ViT-B/16 at 224 with taps / alone, time", ratio))
        benchmark(vit_b_16, x)
        last = plugin._last()
        assert sorted(last._levels) == list(head.config.levels)
        context = [] if last._pooled is None else [last._pooled]
        tensors = [kept.tensor for kept in (*last._levels.values(), *context)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors}
        kept = sum(storage.nbytes() for storage in storages.values())
        tapped = len(head.config.levels) * 197 * 768 * 4
        assert kept <= tapped + 768 * 4  # the levels as their blocks gave them, and the context
        benchmark.extra_info["bytes kept / tapped levels"] = kept / tapped
        report(f"bytes kept / bytes of the tapped levels: {kept / tapped:.4f}")
        report(f"bytes kept / bytes of all hidden states: {kept / (13 * 197 * 768 * 4):.4f}")


def test_cost_of_the_hooks_themselves(
    benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    """As many hooks on a narrow tower, where their time is not lost in the blocks' noise.

    Taps keep references, so that their time does not grow with the width.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_attention_heads=4)
    narrow: nn.Module = CLIPVisionModel(config).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(narrow, DepthHead.for_host(narrow).eval()) as plugin:
        if benchmark.enabled:
            differences = []
            for i in range(600):
                times = {}
                for tapped in (True, False) if i % 2 else (False, True):
                    if not tapped:
                        plugin.detach()
                    start = time.perf_counter()
                    narrow(x)
                    times[tapped] = time.perf_counter() - start
                    if not tapped:
                        plugin.attach()
                differences.append(1e6 * (times[True] - times[False]))
            low, middle, high = statistics.quantiles(differences, n=4)
            benchmark.extra_info["microseconds"] = {"median": middle, "q25": low, "q75": high}
            report(
                f"all hooks of a pass: {middle:.0f} microseconds "
                f"(quartiles {low:.0f} to {high:.0f}; 600 pairs)"
            )
        benchmark(narrow, x)


def test_published_head(
    benchmark: BenchmarkFixture,
    vit_b_16: nn.Module,
    head: DepthHead,
    report: Callable[[str], None],
) -> None:
    """Tower with depth read after each pass against the tower alone: float32, eager, batch 1."""
    compare_with_depth(benchmark, vit_b_16, head, report, "spaceclip")


def test_fast_head(
    benchmark: BenchmarkFixture, vit_b_16: nn.Module, report: Callable[[str], None]
) -> None:
    """The same with the fast preset."""
    fast = DepthHead.for_host(vit_b_16, "fast").eval()
    compare_with_depth(benchmark, vit_b_16, fast, report, "fast")


def compare_with_depth(
    benchmark: BenchmarkFixture,
    tower: nn.Module,
    head: DepthHead,
    report: Callable[[str], None],
    name: str,
) -> None:
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(tower, head) as plugin:

        def with_depth() -> None:
            tower(x)
            _ = plugin.depth

        if benchmark.enabled:
            ratio = paired_ratios(plugin, lambda: tower(x), with_depth, pairs=30)
            benchmark.extra_info["with depth / alone"] = ratio
            report(told(f"ViT-B/16 at 224 with {name} depth / alone, time", ratio))
        benchmark.pedantic(with_depth, rounds=5 if benchmark.enabled else 1)


@pytest.mark.parametrize("module", ["torch", "clipdepth_plugin"])
def test_import_time(benchmark: BenchmarkFixture, module: str) -> None:
    """In a fresh process; clipdepth_plugin's includes torch's."""

    def start() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    benchmark.pedantic(start, rounds=5 if benchmark.enabled else 1)

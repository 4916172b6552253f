"""What the hooks cost, without a head: `make bench` times these, `make test` runs each once.

The ratio to the tower alone is taken in one run, interleaved pair by pair, so that drift of a
shared machine cancels; `extra_info` holds it with its spread.
"""

from __future__ import annotations

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
    """Median and quartiles of beside / alone over interleaved pairs, the order alternating.

    ``alone`` is timed with the plug-in detached; detaching itself is not timed.
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
    return {"median": middle, "q25": low, "q75": high, "pairs": float(pairs)}


def test_hooks_without_a_head(
    benchmark: BenchmarkFixture, vit_b_16: nn.Module, head: DepthHead
) -> None:
    """Tower with taps on the seven published levels against the tower alone."""
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(vit_b_16, head) as plugin:
        if benchmark.enabled:
            benchmark.extra_info["tapped / alone"] = paired_ratios(
                plugin, lambda: vit_b_16(x), lambda: vit_b_16(x), pairs=100
            )
        benchmark(vit_b_16, x)
        # Never more than the tapped levels, whatever the tower computed.
        assert sorted(plugin._last()._levels) == list(head.config.levels)


def test_published_head(benchmark: BenchmarkFixture, vit_b_16: nn.Module, head: DepthHead) -> None:
    """Tower with depth read after each pass against the tower alone: float32, eager, batch 1."""
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(vit_b_16, head) as plugin:

        def with_depth() -> None:
            vit_b_16(x)
            _ = plugin.depth

        if benchmark.enabled:
            benchmark.extra_info["with depth / alone"] = paired_ratios(
                plugin, lambda: vit_b_16(x), with_depth, pairs=30
            )
        benchmark.pedantic(with_depth, rounds=5 if benchmark.enabled else 1)


@pytest.mark.parametrize("module", ["torch", "clipdepth_plugin"])
def test_import_time(benchmark: BenchmarkFixture, module: str) -> None:
    """In a fresh process; clipdepth_plugin's includes torch's."""

    def start() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    benchmark.pedantic(start, rounds=5 if benchmark.enabled else 1)

"""The cost of the taps, without a head: `make bench` times these, `make test` runs each once.

The ratio to the tower alone comes from interleaved rounds; `extra_info` holds it with its interval.
What a head adds to a host is measured by `clipdepth bench`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.latency.intervals import Comparison, Interval, compare, median_interval
from clipdepth_plugin.latency.rounds import Variant, run_rounds, wall_timer


def interleaved(
    plugin: DepthPlugin, tower: nn.Module, x: Tensor, rounds: int
) -> tuple[Comparison, Interval]:
    """A tower with taps against the same without; the tower against itself."""
    plugin.detach()

    def call() -> None:
        tower(x)

    variants = [
        Variant("alone", call),
        Variant("again", call),
        Variant("tapped", call, plugin.attach, plugin.detach),
    ]
    times = run_rounds(variants, rounds, wall_timer())
    plugin.attach()
    found = compare(times["tapped"], times["alone"], times["again"])
    return found, median_interval(times["again"] / times["alone"])


def test_hooks_without_a_head(
    benchmark: BenchmarkFixture,
    vit_b_16: nn.Module,
    report: Callable[[str], None],
) -> None:
    """Tower with taps on the seven published levels against the tower alone."""
    x = torch.randn(1, 3, 224, 224)
    head = DepthHead.for_host(vit_b_16).eval()
    with torch.no_grad(), attach(vit_b_16, head) as plugin:
        if benchmark.enabled:
            found, noise = interleaved(plugin, vit_b_16, x, rounds=60)
            benchmark.extra_info["tapped / alone"] = asdict(found.ratio)
            benchmark.extra_info["alone / alone"] = asdict(noise)
            report(f"ViT-B/16 at 224 with taps / alone, time: {found.ratio}")
            report(f"ViT-B/16 at 224 alone / the same again, time: {noise}")
        benchmark(vit_b_16, x)
        last = plugin._pass()
        assert sorted(last.levels) == list(head.config.levels)
        context = [] if last._pooled is None else [last._pooled]
        tensors = [kept for kept, _ in (*last.levels.values(), *context)]
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
    """As many hooks on a narrow tower, where the blocks' noise does not hide their time.

    Taps keep references, so their time does not grow with the width.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_attention_heads=4)
    narrow: nn.Module = CLIPVisionModel(config).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), attach(narrow, DepthHead.for_host(narrow).eval()) as plugin:
        if benchmark.enabled:
            found, _ = interleaved(plugin, narrow, x, rounds=600)
            benchmark.extra_info["microseconds"] = asdict(found.difference)
            report(f"all hooks of a pass: {found.difference.scaled(1e6)} microseconds")
        benchmark(narrow, x)


@pytest.mark.parametrize("module", ["torch", "clipdepth_plugin"])
def test_import_time(benchmark: BenchmarkFixture, module: str) -> None:
    """In a fresh process; clipdepth_plugin's includes torch's."""

    def start() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    benchmark.pedantic(start, rounds=5 if benchmark.enabled else 1)

"""Many passes, threads, asyncio tasks, and two plug-ins of different heads on one host."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import NoDepthError

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


def _count_tensors() -> int:
    gc.collect()
    # By type: asking some objects of torch for their class makes them warn.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_thousand_passes_leave_memory_flat(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host("hf_clip_vision")
    x = make_pixels(batch=1)
    with attach(host, make_head(host)) as plugin, torch.no_grad():

        def run(passes: int) -> None:
            for i in range(passes):
                host(x)
                if i % 20 == 0:  # most passes are never read
                    _ = plugin.depth

        run(21)
        tracemalloc.start()
        try:
            tensors, (size, _) = _count_tensors(), tracemalloc.get_traced_memory()
            run(1001)  # ends, as the warm-up, on a pass that is read: an unread one is kept
            assert _count_tensors() <= tensors
            # Less than 100 bytes a pass: not even one object is kept of each.
            assert tracemalloc.get_traced_memory()[0] - size < 100_000
        finally:
            tracemalloc.stop()


def test_two_heads_on_one_vlm_read_their_own_levels(
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: Callable[..., dict[str, Tensor]],
) -> None:
    host: Any = make_host("llava")
    heads = make_head(host, context="pooled"), make_head(host, context="mean", channels=(8,) * 4)
    inputs = {"pixel_values": make_pixels(), **make_prompt()}
    with torch.no_grad():
        alone = host(**inputs).logits
        apart = []
        for head in heads:
            with attach(host, head) as plugin:
                host(**inputs)
                apart.append(plugin.depth)
        with attach(host, heads[0]) as first, attach(host, heads[1]) as second:
            assert torch.equal(host(**inputs).logits, alone)
            assert torch.equal(first.depth, apart[0])
            first.detach()  # out of order: the other goes on
            assert torch.equal(host(**inputs).logits, alone)
            assert torch.equal(second.depth, apart[1])
            assert not torch.equal(apart[0], apart[1])


def test_threads_share_a_detached_plugin(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = DepthPlugin(host, head)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = plugin(make_pixels())

        def work(_: int) -> bool:
            with torch.no_grad():
                return torch.allclose(plugin(make_pixels()), expected, atol=1e-6)

        assert all(pool.map(work, range(60)))
    assert not any(module._forward_hooks for module in host.modules())


def test_threads_never_see_each_others_depth(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        expected = [plugin(make_pixels(seed=seed)) for seed in range(4)]
        barrier = threading.Barrier(4)

        def work(seed: int) -> bool:
            for _ in range(10):
                host(make_pixels(seed=seed))
                barrier.wait(timeout=60)  # every thread has run before any reads
                if not torch.allclose(plugin.depth, expected[seed], atol=1e-6):
                    return False
                barrier.wait(timeout=60)
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        with pytest.raises(NoDepthError, match="another thread"):
            _ = plugin.depth


def test_tasks_never_see_each_others_depth(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, torch.no_grad():
        expected = [plugin(make_pixels(seed=seed)) for seed in range(3)]

        async def work(seed: int) -> bool:
            with plugin.capture() as seen:
                host(make_pixels(seed=seed))
                await asyncio.sleep(0)  # the others run now
            same = torch.allclose(plugin.depth, expected[seed], atol=1e-6)
            return same and len(seen) == 1

        async def all_of_them() -> list[bool]:
            return list(await asyncio.gather(*(work(seed) for seed in range(3))))

        assert asyncio.run(all_of_them()) == [True] * 3

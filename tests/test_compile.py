"""torch.compile: attached before and after the first compiled call; hosts that replay a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import (
    NoDepthError,
)

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


def test_attached_before_the_first_compiled_call(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """The hooks are captured, under fullgraph too."""
    host = make_host("timm")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        expected = [plugin(make_pixels(seed=seed)) for seed in (1, 2)]
        compiled = torch.compile(host, fullgraph=True, backend="aot_eager")
        for seed in (1, 2):
            compiled(make_pixels(seed=seed))
            torch.testing.assert_close(plugin.depth, expected[seed - 1])
    torch._dynamo.reset()


def test_attached_after_the_first_compiled_call(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """Compiled code is made anew, also for batch sizes that it has seen before."""
    host = make_host("timm")
    compiled = torch.compile(host, backend="eager", dynamic=False)
    with torch.no_grad():
        for batch in (2, 3):
            compiled(make_pixels(batch=batch))
        with attach(host, make_head(host)) as plugin:
            for batch in (3, 2):
                compiled(make_pixels(batch=batch))
                torch.testing.assert_close(plugin.depth, plugin(make_pixels(batch=batch)))
    torch._dynamo.reset()


def test_a_replayed_tower_is_an_error_and_never_an_old_map(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """A host that runs no hook (as one that replays its own graph) gives no depth."""
    host: Any = make_host("hf_clip")
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        ids = torch.tensor([[1, 5, 6]] * 2)
        host(pixel_values=make_pixels(), input_ids=ids)
        assert plugin.depth.shape == (2, 1, 32, 32)
        host.vision_model.forward = lambda *_, **__: host.vision_model.config  # no block runs
        with contextlib.suppress(AttributeError):
            host(pixel_values=make_pixels(seed=2), input_ids=ids)
        with pytest.raises(NoDepthError, match="nothing at its patch embedding"):
            _ = plugin.depth


def test_a_tower_recorded_as_a_cuda_graph_is_an_error_and_never_an_old_map(
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its replays run no hook; recording is pretended, for want of a GPU."""
    host: Any = make_host("timm")
    with torch.no_grad(), attach(host, make_head(host)) as plugin, plugin.capture() as seen:
        host(make_pixels())
        expected = plugin.depth
        recorder = "clipdepth_plugin.adapters.pass_recorder.in_cuda_graph"
        monkeypatch.setattr(recorder, lambda x: True)
        host(make_pixels(seed=2))
        with pytest.raises(NoDepthError, match="recorded as a CUDA graph, and its replays run no"):
            _ = plugin.depth
        torch.testing.assert_close(plugin(make_pixels()), expected)
        monkeypatch.undo()
        host(make_pixels())
        assert torch.equal(plugin.depth, expected)
        # Its blocks alone: what they give is not computed before a replay.
        monkeypatch.setattr(
            "clipdepth_plugin.adapters.pass_recorder.in_cuda_graph", lambda x: False
        )
        monkeypatch.setattr(Tensor, "is_cuda", True)
        monkeypatch.setattr(torch._C, "_cuda_isCurrentStreamCapturing", lambda: True)
        host(make_pixels(seed=2))
        with pytest.raises(NoDepthError, match="recorded as a CUDA graph, and its replays run no"):
            _ = plugin.depth
    assert len(seen) == 3


def test_a_part_compiled_whole_is_not_left_early(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host("hf_clip")
    head = make_head(host)
    expected = DepthPlugin(host, head)(make_pixels())
    encoder = host.vision_model.encoder
    host.vision_model.encoder = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(DepthPlugin(host, head)(make_pixels()), expected)
    torch._dynamo.reset()


def test_compiling_breaks_the_graph_no_more_often(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host("timm")
    torch._dynamo.reset()
    alone = torch._dynamo.explain(host)(make_pixels())
    with attach(host, make_head(host)) as plugin:
        beside = torch._dynamo.explain(host)(make_pixels())
        assert (beside.graph_count, beside.graph_break_count) == (1, 0)
        assert alone.graph_count == beside.graph_count
        assert plugin.depth.isfinite().all()
    torch._dynamo.reset()

"""A pass's depth, and plugin.graph(), in one CUDA graph; a tape stands in for the GPU."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import HeadMismatchError, HostError, ImageError, NoDepthError
from clipdepth_plugin.plugin.pass_graph import _finish
from tests.benchmarks.test_overhead import calls
from tests.tiny.fused_heads import Tape, in_graphs
from tests.tiny.pass_graphs import fused_head, pictures, seems_a_gpu, small_tower

GRAPHED_PASS = 150
"""Python calls of a pass and of reading its depth from a graph, beside the host's own."""


@pytest.fixture
def tower() -> nn.Module:
    return small_tower()


class Unrecordable(TorchDispatchMode):
    """Fails on copies from the CPU to the GPU; fake tensors fail on what reads a value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        from_cpu = any(x.device.type == "cpu" for x in tree_leaves(args) if isinstance(x, Tensor))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        assert not (from_cpu and any(x.device.type == "cuda" for x in made)), func
        return out


def on_fake_gpu(module: nn.Module) -> None:
    """Its weights in bfloat16, without values, in the fake mode that is on."""
    for one in module.modules():
        for tensors in (one._parameters, one._buffers):
            for name, x in list(tensors.items()):
                if x is not None:
                    dtype = torch.bfloat16 if x.is_floating_point() else x.dtype
                    fake = torch.empty(x.shape, dtype=dtype, device="cuda")
                    tensors[name] = nn.Parameter(fake, requires_grad=False)


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "plain-graph"])
@pytest.mark.parametrize("preset", ["fast", "guided", "spaceclip"])
def test_what_is_recorded_never_waits_for_a_gpu(
    tower: nn.Module, preset: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value is read and nothing is copied from the CPU: a recording would fail on both."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    small: dict[str, Any] = {"channels": (16, 12, 8, 8)[: 4 if preset == "spaceclip" else 3]}
    plain = DepthHead.for_host(tower, preset, film_hidden=8, **small).eval()
    head: Any = plain if form == "plain" else plain.fused(triton=False)
    plugin = DepthPlugin(tower, head)
    graphed = plugin.graph()
    with FakeTensorMode():
        on_fake_gpu(tower)
        on_fake_gpu(head)
        pixels_B3HW = torch.empty(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        one = plugin.tower_pass(pixels_B3HW)
        with Unrecordable():
            _, placed_B1HW, *_ = _finish(one, head, one.tapped())
            *_, depth_B1HW = graphed._finish([pixels_B3HW])
    assert placed_B1HW.shape == depth_B1HW.shape == (2, 1, 64, 64)
    assert depth_B1HW.is_cuda


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "options"), [("fast", {"confidence": True}), ("guided", {"stem_channels": 8})]
)
def test_depth_of_a_pass_is_one_graph_and_the_same(
    tower: nn.Module, preset: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = fused_head(tower, preset, **options)
    shapes = [(2, 64), (1, 64), (2, 64), (2, 64)]
    with attach(tower, head) as plugin, plugin.capture() as seen:

        def read() -> list[Tensor]:
            found: list[Any] = []
            for number, (batch, side) in enumerate(shapes):
                tower(pixel_values=pictures(batch, side) + number)
                found += [plugin.depth, plugin.predict(size=(10, 9))]
                found += [plugin.confidence] if options.get("confidence") else []
            return found

        expected = read()
        tape = in_graphs(head.graphs, monkeypatch)
        again = read()
        assert [torch.equal(a, b) for a, b in zip(again, expected, strict=True)] == [True] * len(
            expected
        )
        assert (tape.recorded, tape.replayed, len(head.graphs)) == (1, 2, 1)
        with pytest.raises(NoDepthError, match="freed"):
            _ = seen[-1].features
        plugin.depth.zero_()
        torch.testing.assert_close(plugin.depth, again[-2 - bool(options.get("confidence"))])


@torch.no_grad()
def test_what_a_graph_finds_is_said_as_without(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = fused_head(tower)
    one_colour = pictures(3)
    one_colour[1] = 0.5
    with attach(tower, head) as plugin:
        tape = in_graphs(head.graphs, monkeypatch)
        for _ in range(3):
            tower(pixel_values=one_colour)
            empty = plugin.depth.isnan().flatten(1).all(dim=1)
            assert empty.tolist() == [False, True, False]
        assert caplog.text.count("constant picture") == 1
        odd = pictures(3)
        odd[2] = torch.nan
        tower(pixel_values=odd)
        with pytest.raises(NoDepthError, match=r"depth of views \[2\] is not finite"):
            _ = plugin.depth
        assert (tape.recorded, tape.replayed) == (1, 3)


@torch.no_grad()
def test_a_hooked_head_and_one_on_another_device_run_step_by_step(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = fused_head(tower)
    seen: list[int] = []
    tape = in_graphs(head.graphs, monkeypatch)
    with attach(tower, head) as plugin:
        handle = head.register_forward_hook(lambda *_: seen.append(1))
        tower(pixel_values=pictures(1))
        _ = plugin.depth
        handle.remove()
        head.train()
        tower(pixel_values=pictures(1))
        with pytest.raises(HeadMismatchError, match="training mode"):
            _ = plugin.depth
    assert (seen, tape.replayed) == ([1], 0)


class CountedReplay:
    """As a CUDA graph's, two calls and no work."""

    def replay(self) -> None:
        operator.truth(self)


@torch.no_grad()
def test_python_calls_of_a_pass_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU: what asks CUDA for streams and captures counts, too."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    host = CLIPVisionModel(CLIPVisionConfig(**sizes, num_attention_heads=4)).eval()
    head = DepthHead.for_host(host, preset="fast").eval().fused()
    head.graphs._record = Tape()
    seems_a_gpu(monkeypatch, operator.truth)
    pixels_B3HW = pictures(1, 224)
    alone = calls(lambda: host(pixel_values=pixels_B3HW))
    with attach(host, head) as plugin:

        def read() -> torch.Tensor:
            host(pixel_values=pixels_B3HW)
            return plugin.depth

        read()
        read()
        recording = next(iter(head.graphs._recordings.values()))
        object.__setattr__(recording, "replay", CountedReplay().replay)
        assert calls(read) - alone <= GRAPHED_PASS


@torch.no_grad()
@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_tower_and_head_in_one_graph(
    tower: nn.Module, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head: Any = fused_head(tower)
    if plain:
        head = DepthHead.for_host(tower, "fast", channels=(16, 12, 8), film_hidden=8).eval()
    with attach(tower, head) as plugin:
        graphed = plugin.graph(limit=2)
        with pytest.raises(HostError, match="NVIDIA GPU"):
            graphed(pictures(1))
        tape = in_graphs(graphed.graphs, monkeypatch)
        for batch in (2, 1, 2, 2, 1):
            for shift in (0, 1):
                pixels = pictures(batch) + shift
                assert torch.equal(graphed(pixels), plugin(pixels))
        assert (tape.recorded, len(graphed.graphs)) == (2, 2)
        with pytest.raises(NoDepthError, match="no tower pass"):
            _ = plugin.depth
        odd = pictures(2)
        odd[1, 0, 0, 0] = torch.inf
        with pytest.raises(ImageError, match=r"images \[1\] are not finite"):
            graphed(odd)
        parent = next(one for one in tower.modules() if hasattr(one, "fc1"))
        for change in (tower.double, lambda: setattr(parent, "fc1", copy.deepcopy(parent.fc1))):
            change()
            before = tape.recorded
            for _ in range(2):
                assert torch.equal(graphed(pictures(1)), plugin(pictures(1)))
            found = (tape.recorded - before, len(graphed.graphs))
            assert found == (1, 1), "weights moved: what was recorded reads where they were"
        head.train()
        with pytest.raises(HeadMismatchError, match="training mode"):
            graphed(pictures(1))

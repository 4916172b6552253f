"""A pass's depth, and plugin.graph(), in one CUDA graph; a tape stands in for the GPU."""

from __future__ import annotations

import copy
import operator
import pickle
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import HeadMismatchError, HostError, ImageError, NoDepthError
from clipdepth_plugin.fused.graphs import GraphCache
from clipdepth_plugin.fused.head import FusedHead
from clipdepth_plugin.plugin.pass_graph import _finish
from tests.benchmarks.test_overhead import calls
from tests.tiny.fused_heads import Tape, in_graphs

GRAPHED_PASS = 150
"""Python calls of a pass and of reading its depth from a graph, beside the host's own."""


@pytest.fixture
def tower() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "image_size": 64}
    config = CLIPVisionConfig(**sizes, num_attention_heads=2, patch_size=16)
    made: nn.Module = CLIPVisionModel(config).eval()
    return made


def fused_head(tower: nn.Module, preset: str = "fast", **options: Any) -> FusedHead:
    torch.manual_seed(0)
    small = {"channels": (16, 12, 8), "film_hidden": 8, **options}
    return DepthHead.for_host(tower, preset, **small).eval().fused()


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
            *_, metres_B1HW = graphed._finish([pixels_B3HW])
    assert placed_B1HW.shape == metres_B1HW.shape == (2, 1, 64, 64)
    assert metres_B1HW.is_cuda


def pictures(batch: int, side: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


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


class Event:
    """Stands in for a CUDA event, with as many calls; which streams it is on or waited for by."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def record(self, stream: Any) -> None:
        self.seen.append(stream)

    def synchronize(self) -> None:
        self.seen.append("synchronize")


def seems_a_gpu(monkeypatch: pytest.MonkeyPatch, stream: Callable[..., int]) -> None:
    """All tensors say that they are on a GPU; ``stream``: the current one's number.

    What asks CUDA is a call here, too: a builtin in the place of each of torch's own.
    """
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    for where in (torch._C, torch.cuda.graphs):
        monkeypatch.setattr(where, "_cuda_isCurrentStreamCapturing", sys.is_finalizing)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Mock(number=stream(device)))
    monkeypatch.setattr(torch.cuda, "Event", Event)


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


@torch.no_grad()
def test_a_pass_of_another_shape_dtype_or_weight_is_recorded_anew(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = fused_head(tower)
    tape = in_graphs(head.graphs, monkeypatch)

    def recorded(pixels: Tensor) -> tuple[int, int]:
        before = tape.recorded
        for _ in range(3):
            tower(pixel_values=pixels)
            found = plugin.depth
            torch.testing.assert_close(found, plugin(pixels))
        return tape.recorded - before, len(head.graphs)

    with attach(tower, head) as plugin:
        monkeypatch.setattr(head.graphs, "run", _unrecorded)
        assert recorded(pictures(1)) == (1, 1)
        assert recorded(pictures(1)) == (0, 1), "as before: replayed"
        assert recorded(pictures(2)) == (1, 2)
        with torch.inference_mode():
            tower(pixel_values=pictures(2))
            assert not plugin.depth.is_inference()
        head.decoder.load_state_dict({k: x + 0.1 for k, x in head.decoder.state_dict().items()})
        assert recorded(pictures(1)) == (0, 2), "in place: the graph reads the new values"
        state = {k: x + 0.1 for k, x in head.state_dict().items()}
        head.load_state_dict(state, assign=True)
        assert recorded(pictures(1)) == (1, 1), "other tensors in the weights' place"
        tower.double()
        head.double()
        assert recorded(pictures(1).double()) == (1, 1), "the others went with the weights"


def _unrecorded(kind: object, tensors: list[Tensor], call: Any) -> list[Tensor]:
    found: list[Tensor] = call(tensors)
    return found


@torch.no_grad()
def test_what_cannot_be_recorded_runs_step_by_step_and_is_named_once(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = fused_head(tower)

    def fails(*_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with attach(tower, head) as plugin:
        graphed = plugin.graph()
        for cache in (head.graphs, graphed.graphs):
            in_graphs(cache, monkeypatch)
            monkeypatch.setattr(cache, "_record", fails)
        expected = plugin(pictures(1))
        for _ in range(4):
            tower(pixel_values=pictures(1))
            torch.testing.assert_close(plugin.depth, expected)
            torch.testing.assert_close(graphed(pictures(1)), expected)
        # The pass; tower and head together.
        assert caplog.text.count("not permitted when stream is capturing") == 2
        assert (len(head.graphs), len(graphed.graphs)) == (0, 0)
        tape = in_graphs(head.graphs, monkeypatch)
        head.to(torch.float32)  # moved: what failed where the weights were is tried again
        for _ in range(2):
            tower(pixel_values=pictures(1))
            torch.testing.assert_close(plugin.depth, expected)
        assert tape.recorded == 1


@torch.no_grad()
def test_plugins_share_no_map_and_a_new_plugin_finds_the_heads_graphs(
    tower: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [fused_head(tower), fused_head(tower, "guided", stem_channels=8)]
    tapes = [in_graphs(head.graphs, monkeypatch) for head in heads]
    expected = [DepthPlugin(tower, head)(pictures(1)) for head in heads]
    for _ in range(3):
        with attach(tower, heads[0]) as first, attach(tower, heads[1]) as second:
            tower(pixel_values=pictures(1))
            for plugin, depth in zip((first, second), expected, strict=True):
                torch.testing.assert_close(plugin.depth, depth)
    assert [tape.recorded for tape in tapes] == [1, 1], "not one for each plug-in"
    assert not any(hook for module in tower.modules() for hook in module._forward_hooks)


@torch.no_grad()
def test_copies_begin_without_graphs(tower: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    head = fused_head(tower)
    in_graphs(head.graphs, monkeypatch)
    with attach(tower, head) as plugin:
        for _ in range(2):
            tower(pixel_values=pictures(1))
            _ = plugin.depth
        monkeypatch.undo()
        assert len(head.graphs) == 1
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):  # noqa: S301 (our own)
            assert len(twin.graphs) == 0
            assert torch.equal(DepthPlugin(tower, twin)(pictures(1)), plugin(pictures(1)))
        for whole in (plugin, plugin.graph()):
            for copied in (copy.deepcopy, pickle.dumps):
                with pytest.raises(HeadMismatchError, match="cannot be copied or pickled"):
                    copied(whole)


def test_replays_on_several_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of one stream do not: it keeps the order."""
    number = 7
    events: list[Event] = []
    waits: list[tuple[int, list[object]]] = []

    class Stream:
        def __init__(self, _: object) -> None:
            self.number = number

        def wait_event(self, event: Event) -> None:
            waits.append((self.number, [one.number for one in event.seen]))  # type: ignore[attr-defined]

    seems_a_gpu(monkeypatch, lambda index: number)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)

    def event() -> Event:
        events.append(Event())
        return events[-1]

    monkeypatch.setattr(torch.cuda, "Event", event)
    cache = GraphCache(1, Tape())

    def run() -> None:
        cache.run_recorded("doubled", [torch.ones(2)], lambda tensors: [2 * tensors[0]])

    for stream in (7, 7, 7, 7, 8, 8, 7):
        number = stream
        run()
    assert len(events) == 3
    assert waits == [(8, [7] * 4), (7, [8, 8])], "one of the four: the end of the recording"
    cache.clear()
    assert events[-1].seen[-1] == "synchronize", "what is replayed is not freed"

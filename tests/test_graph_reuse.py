"""When graphs are recorded anew, shared, dropped and waited for; a tape stands in for the GPU."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.errors import HeadMismatchError
from clipdepth_plugin.fused.graphs import GraphCache
from tests.tiny.fused_heads import Tape, in_graphs
from tests.tiny.pass_graphs import Event, fused_head, pictures, seems_a_gpu, small_tower


@pytest.fixture
def tower() -> nn.Module:
    return small_tower()


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

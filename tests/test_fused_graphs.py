"""CUDA graphs of heads: what is recorded, replayed, dropped; a tape stands in for the GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipdepth_plugin import TowerFeatures
from clipdepth_plugin.fused.graphs import PAUSE, GraphCache
from clipdepth_plugin.fused.head import FusedHead
from tests.tiny.fused_heads import Tape, in_graphs, make_features, make_head


def test_shapes_that_take_turns_do_not_evict_each_other_at_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = make_head("fast")
    fused = head.fused(graphs=2)
    tape, features = in_graphs(fused.graphs, monkeypatch), make_features(head)
    with torch.no_grad():
        for _ in range(PAUSE):
            for size in ((9, 9), (8, 8), (7, 7)):
                fused(features, size)
    assert len(fused.graphs) == 2
    assert 2 < tape.recorded <= 2 + 3, "one in so many calls"


def test_graphs_by_kind_and_shape_with_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = GraphCache(2)
    tape = in_graphs(cache, monkeypatch)
    short, long = torch.randn(2, 3), torch.randn(2, 5)

    def doubled(tensors: list[Tensor]) -> list[Tensor]:
        return [2 * tensors[0]]

    def squared(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0] ** 2]

    (first,) = cache.run("doubled", [short], doubled)
    assert (len(cache), tape.recorded) == (0, 0), "no shape is recorded at first sight"
    for _ in range(2):
        (first,) = cache.run("doubled", [short], doubled)
    assert (tape.recorded, tape.replayed, len(cache)) == (1, 2, 1)
    kept = first.clone()
    (other,) = cache.run("doubled", [short + 1], doubled)
    torch.testing.assert_close(other, 2 * (short + 1))
    assert torch.equal(first, kept), "an output is the caller's: a replay must not write it"
    for _ in range(2):
        (found,) = cache.run("squared", [short], squared)
    torch.testing.assert_close(found, short**2)
    assert (tape.recorded, len(cache)) == (2, 2)
    cache._calls = PAUSE
    for _ in range(2):
        cache.run("doubled", [long], doubled)
    assert (tape.recorded, len(cache)) == (3, 2), "drops what was used longest ago"
    cache.clear()
    assert len(cache) == 0


def test_buffers_keep_the_order_of_axes() -> None:
    """So that one kernel copies all inputs, whatever order their axes have in memory."""
    given = [
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(7, 2, 6).transpose(0, 1),
        torch.randn(2, 9, 6)[:, 1:],
    ]
    recording = GraphCache(1, Tape())._make(given, list)
    assert [x.stride() for x in recording.inputs[:2]] == [x.stride() for x in given[:2]]
    assert recording.inputs[2].is_contiguous()


def test_graphs_hold_the_confidence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head("fast-bins-confidence")
    fused, features = head.fused(), make_features(head)
    with torch.no_grad():
        expected = fused.estimate(features)
        tape = in_graphs(fused.graphs, monkeypatch)
        for _ in range(3):
            torch.testing.assert_close(fused.estimate(features), expected)
    assert tape.recorded == 1


def test_graphs_are_for_gpus_and_go_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head("fast")
    fused, features = head.fused(), make_features(head)
    assert not fused.graphs.applies(list(features.levels.values()))
    with torch.no_grad():
        expected = fused(features)
        tape = in_graphs(fused.graphs, monkeypatch)
        fused(features)
        assert len(fused.graphs) == 0, "no shape is recorded at first sight"
        with torch.inference_mode():
            torch.testing.assert_close(fused(features), expected)
        assert (len(fused.graphs), tape.recorded) == (1, 1)
        torch.testing.assert_close(fused(features), expected)
        assert (tape.recorded, tape.replayed) == (1, 2)
        other = TowerFeatures(
            {k: x + 1 for k, x in features.levels.items()}, features.context, features.grid
        )
        replayed = fused(other)
        monkeypatch.undo()
        torch.testing.assert_close(replayed, fused(other))
        fused.to(torch.float64)
        assert len(fused.graphs) == 0
    assert isinstance(fused, FusedHead)

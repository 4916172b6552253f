"""FusedHead's CUDA graphs: what is recorded, replayed, dropped; a tape stands in for the GPU."""

from __future__ import annotations

import pytest
import torch

from clipdepth_plugin import TowerFeatures
from clipdepth_plugin.fused.graphs import PAUSE, GraphCache, Inputs
from clipdepth_plugin.fused.head import FusedHead
from tests.tiny.fused_heads import Tape, in_graphs, make_features, make_head


def test_shapes_that_take_turns_do_not_evict_each_other_at_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = make_head("fast")
    fused = head.fused(graphs=2)
    (tape,), features = in_graphs(fused, monkeypatch), make_features(head)
    with torch.no_grad():
        for _ in range(PAUSE):
            for size in ((9, 9), (8, 8), (7, 7)):
                fused(features, size)
    assert len(fused._graphs) == 2
    assert 2 < tape.recorded <= 2 + 3, "one in so many calls"


def test_graphs_by_shape_with_a_bound() -> None:
    head, tape = make_head("spaceclip"), Tape()
    fused = head.fused()
    cache = GraphCache(fused._graphs._decode, 2, tape)
    small, large = make_features(head), make_features(head, (4, 4))
    with torch.no_grad():
        (first,) = cache(Inputs(small))
        kept = first.clone()
        for features, size in ((small, (9, 9)), (small, None)):
            torch.testing.assert_close(cache(Inputs(features, size)), [fused(features, size)])
        assert (tape.recorded, tape.replayed, len(cache)) == (2, 3, 2)
        other = TowerFeatures(
            {k: x + 1 for k, x in small.levels.items()}, small.context, small.grid
        )
        torch.testing.assert_close(cache(Inputs(other)), [fused(other)])
        assert torch.equal(first, kept), "an output is the caller's: a replay must not write it"
        cache(Inputs(large))  # drops (9, 9), used longest ago
        cache(Inputs(small))
        assert (tape.recorded, len(cache)) == (3, 2)
        cache(Inputs(small, (9, 9)))
        assert tape.recorded == 4
        cache.clear()
        cache(Inputs(small))
        assert (tape.recorded, len(cache)) == (5, 1)


def test_graphs_hold_the_confidence_too() -> None:
    head = make_head("fast-bins-confidence")
    fused, features = head.fused(), make_features(head)
    with torch.no_grad():
        expected = fused.estimate(features)
        cache = GraphCache(fused._graphs._decode, 1, Tape())
        for _ in range(2):
            torch.testing.assert_close(cache(Inputs(features)), list(expected[:2]))


def test_graphs_are_for_gpus_and_go_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    head, tape = make_head("fast"), Tape()
    fused, features = head.fused(), make_features(head)
    assert not fused._graphs.applies(Inputs(features))
    fused._graphs = GraphCache(fused._graphs._decode, 2, tape)
    monkeypatch.setattr(fused._graphs, "applies", lambda inputs: True)
    with torch.no_grad():
        expected = fused(features)
        assert len(fused._graphs) == 0, "no shape is recorded at first sight"
        with torch.inference_mode():
            torch.testing.assert_close(fused(features), expected)
        assert (len(fused._graphs), tape.recorded) == (1, 1)
        torch.testing.assert_close(fused(features), expected)
        assert (tape.recorded, tape.replayed) == (1, 2)
        fused.to(torch.float64)
        assert len(fused._graphs) == 0
    assert isinstance(fused, FusedHead)

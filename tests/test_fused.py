"""FusedHead: the plain head's numbers, in every preset, dtype and place."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures
from clipdepth_plugin.decoders.blocks import ConvNormAct
from clipdepth_plugin.fused.weights import shifted_resize_matrix
from tests.tiny.fused_heads import EACH_HEAD, HEADS, in_graphs, make_features, make_head

CONFIDENT = [name for name, options in HEADS.items() if options.get("confidence")]


@EACH_HEAD
@pytest.mark.parametrize(
    ("grid", "batch", "size"),
    [((3, 5), 2, None), ((4, 3), 1, (50, 70)), ((1, 1), 3, (9, 40)), ((2, 2), 0, None)],
    ids=str,
)
def test_agrees_with_the_plain_head(
    name: str, grid: tuple[int, int], batch: int, size: tuple[int, int] | None
) -> None:
    head = make_head(name)
    features = make_features(head, grid, batch)
    with torch.no_grad():
        exact = copy.deepcopy(head).double()(features, size)
        out, half = head.fused()(features, size), head.fused(torch.bfloat16)(features, size)
    assert out.dtype == half.dtype == torch.float32
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)
    # Group norm comes nearest, at 1.05%. Sums are in float32 already: rounding its weights and
    # tokens alone, all else in float64, is 0.58% off.
    assert relative(half, exact) <= 1.2e-2


@pytest.mark.parametrize("name", CONFIDENT)
@pytest.mark.parametrize("size", [None, (50, 70)])
def test_confidence_is_the_plain_heads(name: str, size: tuple[int, int] | None) -> None:
    head = make_head(name)
    features = make_features(head, (4, 3))
    with torch.no_grad():
        _, exact = copy.deepcopy(head).double().forward_with_confidence(features, size)
        metres, confidence = head.fused().forward_with_confidence(features, size)
        _, half = head.fused(torch.bfloat16).forward_with_confidence(features, size)
        assert torch.equal(metres, head.fused()(features, size))
    assert confidence.dtype == half.dtype == torch.float32
    assert float(confidence.std()) > 1e-3, "a confidence that is the same everywhere shows nothing"
    torch.testing.assert_close(confidence, exact, rtol=1e-4, atol=1e-4)
    assert relative(half, exact) <= 1e-2


def relative(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm().clamp_min(1e-9))


@pytest.mark.parametrize("name", ["spaceclip", "fast"])
def test_float64_is_exact(name: str) -> None:
    """Folding, composing and moving the resize are identities, not approximations."""
    head = make_head(name).double()
    features = make_features(head)
    with torch.no_grad():
        torch.testing.assert_close(head.fused()(features), head(features), rtol=1e-6, atol=1e-6)


def test_holds_copies_and_leaves_the_head_alone() -> None:
    head = make_head("spaceclip")
    before = copy.deepcopy(head.state_dict())
    fused, features = head.fused(), make_features(head)
    with torch.no_grad():
        expected = fused(features)
        for parameter in head.parameters():
            parameter.zero_()
        torch.testing.assert_close(fused(features), expected, rtol=0, atol=0)
    assert before.keys() == head.state_dict().keys()
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("name", ["spaceclip", "fast", "guided"])
@pytest.mark.parametrize("graphs", [False, True], ids=["as it is", "in graphs"])
def test_a_callers_autocast_changes_no_bit(
    name: str, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it kept in a recording, which later calls would replay."""
    plain = make_head(name)
    head, features = plain.fused(torch.bfloat16), make_features(plain)
    with torch.no_grad():
        expected = head(features)
        tapes = [in_graphs(head.graphs, monkeypatch)] if graphs else []
        with torch.autocast("cpu", torch.float16):
            for _ in range(2):  # the second time recorded
                assert torch.equal(head(features), expected)
        assert [tape.recorded for tape in tapes] == [1] * len(tapes)
        assert torch.equal(head(features), expected)


def test_copies_and_pickles() -> None:
    head = make_head("fast")
    fused, features = head.fused(), make_features(head)
    with torch.no_grad():
        for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):  # noqa: S301
            assert torch.equal(again(features), fused(features))


# Saving's remark on weights that are not row-major (channels-last ones).
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning")
@pytest.mark.parametrize("name", ["spaceclip", "guided"])
def test_compiles_and_exports(name: str) -> None:
    head = make_head(name)
    fused, features = head.fused(), make_features(head)
    with torch.no_grad():
        expected = fused(features)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(features), expected)
        torch._dynamo.reset()
        saved = io.BytesIO()
        torch.export.save(torch.export.export(fused, (features,)), saved)
        saved.seek(0)
        with torch.serialization.safe_globals([TowerFeatures]):  # the example input in the file
            loaded = torch.export.load(saved)
        torch.testing.assert_close(loaded.module()(features), expected)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (3, 6), (5, 13), (7, 3)])
def test_resize_and_taps_as_one_matrix(low: int, high: int) -> None:
    signal, taps = torch.randn(low).double(), torch.randn(3).double()
    resized = nn.functional.interpolate(
        signal[None, None, :, None], size=(high, 1), mode="bilinear", align_corners=False
    )
    expected = nn.functional.conv1d(resized[..., 0], taps[None, None], padding=1)
    matrix = shifted_resize_matrix(low, high, like=signal)
    out = matrix @ (taps[:, None] * signal).flatten()
    torch.testing.assert_close(out, expected[0, 0])


def test_a_head_trained_with_synchronised_norms() -> None:
    """As ``sync_batch_norm: true`` leaves it."""
    head: DepthHead = nn.SyncBatchNorm.convert_sync_batchnorm(make_head("fast-batch-norm"))
    features = make_features(head)
    blocks = [one for one in head.modules() if isinstance(one, ConvNormAct)]
    assert all(isinstance(block.norm, nn.SyncBatchNorm) for block in blocks)
    with torch.no_grad():
        torch.testing.assert_close(head.fused()(features), head(features), rtol=1e-4, atol=1e-4)


@EACH_HEAD
def test_beside_a_host(name: str) -> None:
    """It plugs in as a head does, and gives what the head gives."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from clipdepth_plugin import attach

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 24, "num_attention_heads": 2}
    host = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=48, patch_size=16)).eval()
    head, pixels = make_head(name), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        with attach(host, head) as plugin:
            host(pixels)
            expected, module = plugin.depth, plugin(pixels)
            sure = plugin.confidence if head.config.confidence else None
        with attach(host, head.fused()) as plugin:
            host(pixels)
            torch.testing.assert_close(plugin.depth, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plugin(pixels), module, rtol=1e-4, atol=1e-4)
            if sure is not None:
                torch.testing.assert_close(plugin.confidence, sure, rtol=1e-4, atol=1e-4)

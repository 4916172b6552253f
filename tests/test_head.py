"""DepthHead: shapes, dtypes, autocast, options, compile and export."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.config import Preset
from clipdepth_plugin.errors import HeadMismatchError
from tests.tiny.depth_heads import (
    EACH_DECODER,
    FAST,
    GUIDED,
    make_features,
    make_head,
)


def test_published_size() -> None:
    """Parameter counts of the published head (width 768), with and without auxiliary outputs."""
    with torch.device("meta"):
        head = DepthHead(HeadConfig(width=768))
    total = sum(p.numel() for p in head.parameters())
    auxiliary = sum(p.numel() for p in head.get_submodule("decoder.auxiliary").parameters())
    assert (total, total - auxiliary) == (12_050_996, 11_663_249)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="published"),
        pytest.param({"film": False}, id="no-film"),
        pytest.param({"structural": False}, id="no-structural"),
        pytest.param({"film": False, "structural": False}, id="neither"),
        pytest.param({"auxiliary": 0}, id="no-auxiliary"),
        pytest.param({"activation": "softplus"}, id="softplus"),
        pytest.param({"activation": "log"}, id="log"),
        pytest.param({"norm": "group", "dropout": 0.0}, id="group-norm"),
        pytest.param({"norm": "none", "dropout": 0.0}, id="no-norm"),
        pytest.param(FAST, id="fast"),
        pytest.param({**FAST, "film": False}, id="fast-no-film"),
        pytest.param({**FAST, "norm": "group"}, id="fast-group-norm"),
        pytest.param({**FAST, "norm": "batch"}, id="fast-batch-norm"),
        pytest.param({**FAST, "structural": False}, id="fast-no-structural"),
        pytest.param(
            {**FAST, "semantic_levels": (12,), "structural_levels": (1, 0)}, id="fast-levels"
        ),
        pytest.param({"activation": "bins"}, id="bins"),
        pytest.param({"confidence": True}, id="confidence"),
        pytest.param({**FAST, "activation": "bins", "confidence": True}, id="fast-bins"),
        pytest.param(GUIDED, id="guided"),
        pytest.param({**GUIDED, "join_kernel": 3}, id="guided-wide-join"),
        pytest.param({**GUIDED, "norm": "batch"}, id="guided-batch-norm"),
        pytest.param({**GUIDED, "norm": "group", "structural": False}, id="guided-plain"),
        pytest.param(
            {"channels": (12, 5), "semantic_levels": (4, 2), "structural_levels": (1,)},
            id="2-stages",
        ),
        pytest.param(
            {"channels": (8,), "semantic_levels": (4,), "structural": False}, id="1-stage"
        ),
    ],
)
def test_options(options: dict[str, Any]) -> None:
    head = make_head(**options)
    features = make_features(head.config, grid=(2, 3))
    native = head(features)
    scale = head.config.upsampling
    assert native.shape == (2, 1, 2 * scale, 3 * scale)
    metres, auxiliary = head.forward_with_aux(features, size=(21, 33))
    assert len(auxiliary) == head.config.auxiliary
    assert all(x.shape == (2, 1, 21, 33) for x in (metres, *auxiliary))
    torch.testing.assert_close(metres, head(features, (21, 33)), rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    decoder=st.sampled_from(({}, FAST, GUIDED)),
    patch=st.sampled_from((8, 14, 16, 32)),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    batch=st.integers(0, 3),
    size=st.none() | st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_any_grid_batch_and_size(
    decoder: dict[str, Any],
    patch: int,
    grid: tuple[int, int],
    batch: int,
    size: tuple[int, int] | None,
) -> None:
    head = make_head(**decoder)
    out = head(make_features(head.config, grid, batch, patch=patch), size)
    assert out.shape == (batch, 1, *(size or (16 * grid[0], 16 * grid[1])))
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 0.05), (torch.float16, 0.01)],
    ids=["bfloat16", "float16"],
)
@pytest.mark.parametrize("batch", [0, 2])
@EACH_DECODER
def test_half_precision(
    decoder: dict[str, Any], dtype: torch.dtype, tolerance: float, batch: int
) -> None:
    head = make_head(**decoder)
    features = make_features(head.config, (3, 2), batch)
    expected = head(features)
    half = make_head(**decoder).to(dtype)
    out = half(make_features(head.config, (3, 2), batch, dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    # A tower in half precision under a head in float32.
    mixed = head(make_features(head.config, (3, 2), batch, dtype))
    torch.testing.assert_close(mixed, expected, rtol=tolerance, atol=tolerance)


@EACH_DECODER
def test_autocast(decoder: dict[str, Any]) -> None:
    head = make_head(**decoder)
    features = make_features(head.config)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(features, (20, 20))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, head(features, (20, 20)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("factor", [1.0, 1e3, -1e3])
@pytest.mark.parametrize("activation", ["log", "bins"])
@pytest.mark.parametrize(
    ("decoder", "weight"), [({}, "readout.to_depth"), (FAST, "to_logit")], ids=["dual", "fast"]
)
def test_bounded_outputs_stay_in_range(
    factor: float, activation: str, decoder: dict[str, Any], weight: str
) -> None:
    head = make_head(**decoder, activation=activation, depth_range=(0.5, 8.0))
    features = make_features(head.config)
    with torch.no_grad():
        head.get_parameter(f"decoder.{weight}.weight").mul_(factor)
        out = head(features)
    assert out.min() >= 0.5 * (1 - 1e-6)
    assert out.max() <= 8.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("preset", "parameters", "macs"), [("fast", 2.5e6, 0.9e9), ("guided", 2.5e6, 1.6e9)]
)
def test_presets_keep_their_budgets(preset: Preset, parameters: float, macs: float) -> None:
    """For ViT-B/16 at 224, whose own cost is 17.6 GMAC."""
    head = DepthHead(HeadConfig(width=768, preset=preset))
    with FlopCounterMode(display=False) as counter:
        head(make_features(head.config, (14, 14), batch=1))
    assert sum(p.numel() for p in head.parameters()) <= parameters
    assert counter.get_total_flops() / 2 <= macs


@EACH_DECODER
def test_confidence(decoder: dict[str, Any]) -> None:
    """A probability beside the very depth that ``forward`` gives; refused where there is none."""
    head = make_head(**decoder, confidence=True)
    features = make_features(head.config)
    metres, confidence = head.forward_with_confidence(features, (20, 30))
    torch.testing.assert_close(metres, head(features, (20, 30)), rtol=0, atol=0)
    assert confidence.shape == metres.shape
    assert confidence.dtype == torch.float32
    assert bool(((confidence > 0) & (confidence < 1)).all())
    scale = head.estimate(features, (20, 30)).log_scale
    assert scale is not None
    torch.testing.assert_close(confidence, 1 - (-math.log(1.25) / scale.exp()).exp())
    calibrated = DepthHead(HeadConfig(**{**head.config.model_dump(), "confidence_scale": 2.0}))
    calibrated.load_state_dict(head.state_dict())
    same, less_sure = calibrated.eval().forward_with_confidence(features, (20, 30))
    assert torch.equal(same, metres)
    torch.testing.assert_close(less_sure, 1 - (-math.log(1.25) / (2 * scale.exp())).exp())
    with pytest.raises(HeadMismatchError, match="predicts no confidence"):
        make_head(**decoder).forward_with_confidence(features)


def test_auxiliary_heads_run_in_training_only() -> None:
    head = make_head()
    calls: list[int] = []
    for output in head.get_submodule("decoder.auxiliary").children():
        output.register_forward_hook(lambda *_: calls.append(1))
    head(make_features(head.config))
    assert not calls
    head.forward_with_aux(make_features(head.config))
    assert len(calls) == 3


@EACH_DECODER
def test_gradients_reach_every_parameter(decoder: dict[str, Any]) -> None:
    head = make_head(**decoder).train()
    metres, auxiliary = head.forward_with_aux(make_features(head.config), (16, 16))
    torch.stack([x.mean() for x in (metres, *auxiliary)]).sum().backward()
    # A convolution's bias before a batch norm has a gradient of zero, but it has one.
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


@EACH_DECODER
def test_compiles_without_graph_breaks(decoder: dict[str, Any]) -> None:
    head = make_head(**decoder)
    features = make_features(head.config)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, (20, 20)), head(features, (20, 20)))
    torch._dynamo.reset()


@EACH_DECODER
def test_exports(decoder: dict[str, Any]) -> None:
    head = make_head(**decoder)
    features = make_features(head.config)
    program = torch.export.export(head, (features,))
    torch.testing.assert_close(program.module()(features), head(features))
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    with torch.serialization.safe_globals([TowerFeatures]):  # the example input in the file
        loaded = torch.export.load(saved)
    torch.testing.assert_close(loaded.module()(features), head(features))

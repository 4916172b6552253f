"""DepthHead: shapes, dtypes, autocast, options, errors, compile and export."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.compact import convex_upsample, convex_weights
from clipdepth_plugin.config import Activation, Preset, scale_levels
from clipdepth_plugin.errors import FeaturesError, HeadMismatchError
from clipdepth_plugin.film import FiLM
from clipdepth_plugin.guided import PatchAttention
from clipdepth_plugin.readout import Metres

WIDTH = 16
SMALL: dict[str, Any] = {"width": WIDTH, "channels": (16, 8, 8, 8), "film_hidden": 8}
FAST: dict[str, Any] = {"preset": "fast", "channels": (16, 8, 8)}
GUIDED: dict[str, Any] = {**FAST, "preset": "guided", "stem_channels": 4}
EACH_DECODER = pytest.mark.parametrize(
    "decoder", [{"activation": "softplus"}, FAST, GUIDED], ids=["dual-path", "compact", "guided"]
)


def make_features(
    config: HeadConfig,
    grid: tuple[int, int] = (3, 3),
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    patch: int = 16,
) -> TowerFeatures:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    levels = {k: random(batch, grid[0] * grid[1], config.width) for k in config.levels}
    context = random(batch, config.width) if config.film else None
    size = (patch * grid[0], patch * grid[1])
    return TowerFeatures(
        levels, context, grid, random(batch, 3, *size) if config.reads_pixels else None
    )


def make_head(**options: Any) -> DepthHead:
    torch.manual_seed(0)
    return DepthHead(HeadConfig(**{**SMALL, **options})).eval()


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
        pytest.param(FAST, id="fast"),
        pytest.param({**FAST, "film": False}, id="fast-no-film"),
        pytest.param({**FAST, "structural": False, "norm": "batch"}, id="fast-no-structural"),
        pytest.param(
            {**FAST, "semantic_levels": (12,), "structural_levels": (1, 0)}, id="fast-levels"
        ),
        pytest.param({"activation": "bins"}, id="bins"),
        pytest.param({"confidence": True}, id="confidence"),
        pytest.param({**FAST, "activation": "bins", "confidence": True}, id="fast-bins"),
        pytest.param(GUIDED, id="guided"),
        pytest.param({**GUIDED, "norm": "batch", "structural": False}, id="guided-plain"),
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


@pytest.mark.parametrize("activation", ["relu", "softplus", "log", "bins"])
def test_autocast_leaves_the_activation_alone(activation: Activation) -> None:
    metres = Metres(activation, (0.05, 20.0))
    logits_BCHW = torch.randn(2, metres.channels, 5, 7, generator=torch.Generator().manual_seed(0))
    expected_B1HW = metres(metres.to_level(logits_BCHW))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metres(metres.to_level(logits_BCHW)), expected_B1HW)


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


def test_the_stem_sees_single_pixels() -> None:
    """A pixel changes the depth of the patches around its own, and none far away."""
    head = make_head(**GUIDED, norm="batch")
    features = make_features(head.config, (3, 9), batch=1)
    assert features.pixels is not None
    pixels = features.pixels.clone()
    pixels[:, :, 20, 72] += 5.0
    changed = dataclasses.replace(features, pixels=pixels)
    with torch.no_grad():
        torch.testing.assert_close(head(changed), head(features), rtol=0, atol=0)  # at first
        torch.nn.init.ones_(head.get_parameter("decoder.guidance.smooth.norm.weight"))
        moved = (head(changed) - head(features)).abs()[0, 0] > 1e-6
    columns = moved.nonzero()[:, 1]
    assert bool(moved[20, 72])
    # The stem sees 8 pixels to either side, so it reaches 3 patches and, around them, 5 (pixels 32
    # to 111); then come convolutions and the mixing.
    assert 32 - 20 <= int(columns.min()) < 64
    assert 80 < int(columns.max()) <= 111 + 20


def test_patches_that_look_alike_are_mixed() -> None:
    """Left of an edge inside a patch come the left patch's values, right of it the right one's."""
    torch.manual_seed(0)
    attention = PatchAttention(1, 1, 4)
    image = torch.randn(1, 4, 1, 1).expand(1, 4, 4, 12).clone()
    image[..., 6:] = torch.randn(4, 1, 1)
    with torch.no_grad():
        attention.log_sharpness.fill_(6.0)
        torch.nn.init.ones_(attention.to_value.weight)
        assert attention.to_value.bias is not None
        torch.nn.init.zeros_(attention.to_value.bias)
        out = attention(torch.tensor([[[[1.0, 5.0, 2.0]]]]), image)
    assert out.shape == (1, 1, 4, 12)
    torch.testing.assert_close(out[0, 0, 0, 4:8], torch.tensor([1.0, 1.0, 2.0, 2.0]))


def test_convex_upsampling_mixes_neighbours_only() -> None:
    """Flat stays flat to the border; outputs stay between their neighbours' extremes."""
    torch.manual_seed(0)
    mask = convex_weights(torch.randn(1, 9 * 16, 3, 5), 4)
    flat = convex_upsample(torch.full((1, 1, 3, 5), 2.5), mask, 4)
    torch.testing.assert_close(flat, torch.full((1, 1, 12, 20), 2.5))
    coarse = torch.randn(1, 1, 3, 5)
    fine = convex_upsample(coarse, mask, 4)
    highest = torch.nn.functional.max_pool2d(coarse, 3, stride=1, padding=1)
    assert bool((fine <= highest.repeat_interleave(4, 2).repeat_interleave(4, 3) + 1e-6).all())


def test_bins_give_the_expected_log_depth() -> None:
    metres = Metres("bins", (0.5, 8.0))
    logits_BCHW = torch.full((1, metres.channels, 1, 1), -1e4)
    logits_BCHW[0, [0, -1]] = 0.0  # half of it at either end
    level = metres.to_level(logits_BCHW)
    torch.testing.assert_close(metres(level), torch.full((1, 1, 1, 1), 2.0))


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
    with pytest.raises(HeadMismatchError, match="predicts no confidence"):
        make_head(**decoder).forward_with_confidence(features)


def test_film_is_the_plain_factor() -> None:
    """Gamma multiplies as it is (not 1 + gamma): with a zero MLP nothing passes."""
    film = FiLM(4, 3)
    for parameter in film.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(film(torch.randn(2, 5, 4), torch.randn(2, 4)), torch.zeros(2, 5, 4))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": {}}, "at least one level"),
        ({"drop": 9}, r"levels \[9\] are missing"),
        ({"context": None}, "needs the 'pooled' context"),
        ({"width": 8}, "has width 8; the head was made for 16"),
        ({"tokens": 8}, r"needs \(B, 9, D\)"),
        ({"batch": 3}, "holds 3 views"),
        ({"options": GUIDED}, "the head's image stem reads the tower's input pixels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_features(change: dict[str, Any], message: str) -> None:
    head = make_head(**change.get("options", {}))
    good = make_features(head.config)
    levels = dict(good.levels)
    if "drop" in change:
        del levels[change["drop"]]
    if "width" in change:
        levels[3] = levels[3][..., : change["width"]]
    if "tokens" in change:
        levels[3] = levels[3][:, : change["tokens"]]
    if "batch" in change:
        levels[12] = torch.zeros(change["batch"], 9, WIDTH)
    with pytest.raises(FeaturesError, match=message):
        head(
            TowerFeatures(
                change.get("levels", levels), change.get("context", good.context), good.grid
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"semantic_levels": (1, 2)}, "2 levels for 4 stages"),
        ({"structural_levels": (1, 2)}, "give 3, one for each stage but the last"),
        ({"depth_range": (2.0, 1.0)}, "low < high"),
        ({"depth_range": (0.0, 1.0)}, "low < high"),
        ({"canonical_focal": math.inf}, "canonical_focal"),
        ({"canonical_focal": math.nan}, "canonical_focal"),
        ({"depth_range": (0.1, math.inf)}, "depth_range"),
        ({"activation": "tanh"}, "activation"),
        ({"preset": "nosuch"}, "preset"),
        ({"levels": (1,)}, "Extra inputs"),
        ({"channels": ()}, "at least one decoder stage"),
        ({"channels": (8,), "semantic_levels": (1,), "structural_levels": ()}, "two stages"),
        ({"auxiliary": 9}, "9 outputs for 4 stages"),
        ({"preset": "fast"}, "the compact decoder takes three numbers"),
        ({**FAST, "channels": (5, 4, 4)}, "the first of them even"),
        ({**FAST, "auxiliary": 1}, "no auxiliary outputs"),
        ({"stem_channels": 8}, "the dual-path decoder has no image stem"),
        ({**FAST, "semantic_levels": ()}, "at least one level"),
        ({**FAST, "structural_levels": ()}, "give at least one, or set structural=False"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadConfig(**{**SMALL, **options})


def test_presets() -> None:
    assert HeadConfig(width=8).structural_levels == (2, 1, 0)
    middle = HeadConfig(width=8, preset="spaceclip-middle")
    assert middle.structural_levels == (7, 5, 4)
    assert middle.levels == (3, 4, 5, 6, 7, 9, 12)
    given_wins = HeadConfig(width=8, preset="spaceclip-middle", structural_levels=(6, 5, 4))
    assert given_wins.structural_levels == (6, 5, 4)
    assert HeadConfig.model_validate_json(middle.model_dump_json()) == middle


def test_scaled_levels() -> None:
    assert scale_levels((12, 9, 6, 3), 24) == (24, 18, 12, 6)
    assert scale_levels((12, 9, 6, 3), 27) == (27, 20, 14, 7)
    assert scale_levels((7, 5, 4), 12) == (7, 5, 4)


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

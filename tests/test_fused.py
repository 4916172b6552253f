"""FusedHead: the plain head's numbers, in every preset, dtype and place."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.blocks import ConvNormGELU
from clipdepth_plugin.errors import FeaturesError, KernelError
from clipdepth_plugin.fused import FusedHead
from clipdepth_plugin.fused_graphs import PAUSE, GraphCache, Inputs, Recording
from clipdepth_plugin.fused_weights import shifted_resize_matrix

COMPACT: dict[str, Any] = {"channels": (16, 12, 8), "film_hidden": 8}
DUAL: dict[str, Any] = {"channels": (16, 12, 8, 8), "film_hidden": 8}
HEADS: dict[str, dict[str, Any]] = {
    "spaceclip": {**DUAL, "activation": "softplus"},
    "spaceclip-log": {**DUAL, "activation": "log"},
    "spaceclip-middle": {**DUAL, "preset": "spaceclip-middle", "activation": "softplus"},
    "no-film": {**DUAL, "film": False, "activation": "log"},
    "no-structural": {**DUAL, "structural": False, "activation": "log"},
    "bins": {**DUAL, "activation": "bins"},
    "log-confidence": {**DUAL, "activation": "log", "confidence": True},
    "group-norm": {**DUAL, "norm": "group", "activation": "log"},
    "no-norm": {**DUAL, "norm": "none", "activation": "log"},
    "fast": {**COMPACT, "preset": "fast"},
    "fast-group-norm": {**COMPACT, "preset": "fast", "norm": "group"},
    "fast-no-norm": {**COMPACT, "preset": "fast", "norm": "none"},
    "fast-bins-confidence": {**COMPACT, "preset": "fast", "activation": "bins", "confidence": True},
    "fast-neither": {**COMPACT, "preset": "fast", "film": False, "structural": False},
    "guided": {**COMPACT, "preset": "guided", "stem_channels": 8},
    "guided-batch-norm": {**COMPACT, "preset": "guided", "stem_channels": 8, "norm": "batch"},
    "guided-group-norm": {**COMPACT, "preset": "guided", "stem_channels": 8, "norm": "group"},
    "guided-wide-join": {**COMPACT, "preset": "guided", "stem_channels": 8, "join_kernel": 3},
    "guided-confidence": {**COMPACT, "preset": "guided", "stem_channels": 8, "confidence": True},
}
CONFIDENT = [name for name, options in HEADS.items() if options.get("confidence")]
EACH_HEAD = pytest.mark.parametrize("name", HEADS)


def make_head(name: str) -> DepthHead:
    """A head whose norms are not at their initial values: folding them must matter."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = DepthHead(HeadConfig(width=24, **HEADS[name])).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(module, nn.Linear):  # FiLM that begins as the identity would hide its MLP
            nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.Conv2d) and head.config.norm == "none":  # its bias begins at 0
            assert module.bias is not None
            nn.init.normal_(module.bias, std=0.1, generator=generator)
            if not module.weight.any():
                nn.init.normal_(module.weight, std=0.1, generator=generator)
    return head


def make_features(
    head: DepthHead, grid: tuple[int, int] = (3, 5), batch: int = 2, prefix: int = 1
) -> TowerFeatures:
    """Tokens as hooks give them: slices behind prefix tokens."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config, tokens = head.config, prefix + grid[0] * grid[1]
    levels = {k: random(batch, tokens, config.width)[:, prefix:] for k in config.levels}
    context = random(batch, config.width) if config.film else None
    pixels = random(batch, 3, 16 * grid[0], 16 * grid[1]) if head.reads_pixels else None
    return TowerFeatures(levels, context, grid, pixels)


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
    # Group norm comes nearest, at 0.96%. Sums are in float32 already, and no more of them would
    # help: rounding its weights and tokens alone, all else in float64, is 0.78% off.
    assert relative(half, exact) <= 1e-2


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
        expected, early = head(features), head.early(features)
        tapes = in_graphs(head, monkeypatch) if graphs else []
        with torch.autocast("cpu", torch.float16):
            for _ in range(2):  # the second time recorded
                assert torch.equal(head(features), expected)
                assert all(map(torch.equal, head.early(features), early))
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


def test_errors() -> None:
    head = make_head("spaceclip")
    features = make_features(head)
    with pytest.raises(KernelError, match="asked for, but its tensors are on cpu"):
        head.fused(triton=True)(features)
    with pytest.raises(FeaturesError, match="context"):
        head.fused()(TowerFeatures(features.levels, None, features.grid))
    wanting = {k: x.requires_grad_() for k, x in features.levels.items()}
    with pytest.raises(KernelError, match="gives no gradient"):
        head.fused()(TowerFeatures(wanting, features.context, features.grid))
    head.decoder = nn.Identity()
    with pytest.raises(KernelError, match="Identity has no fused form"):
        head.fused()


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_early_maps_that_do_not_fit(form: str) -> None:
    plain, without = make_head("fast"), make_head("fast-neither")
    features, more = make_features(plain), make_features(plain, batch=3)
    head, late = (plain, without) if form == "plain" else (plain.fused(), without.fused())
    first, *rest = head.early_levels
    some = {level: features.levels[level] for level in rest}
    narrow = {**some, first: features.levels[first][..., :8]}
    with torch.no_grad():
        early = head.early(features)
        with pytest.raises(FeaturesError, match=rf"levels \[{first}\] are missing"):
            head.early(TowerFeatures(some, None, features.grid))
        with pytest.raises(FeaturesError, match=f"level {first} has width 8; .* made for 24"):
            head.early(TowerFeatures(narrow, None, features.grid))
        with pytest.raises(FeaturesError, match="early maps are of 2 views, the features of 3"):
            head(more, early=early)
        with pytest.raises(FeaturesError, match="has no early levels"):
            late.early(features)
        with pytest.raises(FeaturesError, match="has no early levels"):
            late(make_features(without), early=early)


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


class Tape:
    """Stands in for CUDA graphs: notes what is recorded, and replays by running again."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Recording:
        self.recorded += 1
        outputs = call()

        def replay() -> None:
            self.replayed += 1
            for output, again in zip(outputs, call(), strict=True):
                output.copy_(again)

        return Recording(inputs, outputs, replay)


def in_graphs(head: FusedHead, monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Has a head record on the CPU; the tapes of its whole call and of its early part."""
    monkeypatch.setattr(GraphCache, "applies", lambda cache, inputs: True)
    tapes = [Tape(), Tape()]
    head._graphs._record, head._early_graphs._record = tapes
    return tapes


def test_shapes_that_take_turns_do_not_evict_each_other_at_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = make_head("fast")
    fused = head.fused(graphs=2)
    (tape, _), features = in_graphs(fused, monkeypatch), make_features(head)
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


@EACH_HEAD
@pytest.mark.parametrize("form", ["plain", "fused", "fused bfloat16", "fused, in graphs"])
def test_early_maps_change_no_bit(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed before the tower is done, without a context, and the rest: the same bits."""
    plain = make_head(name)
    dtype = torch.bfloat16 if "bfloat16" in form else None
    head = plain if form == "plain" else plain.fused(dtype)
    features = make_features(plain, (4, 3))
    assert head.early_levels == (plain.config.structural_levels if plain.config.structural else ())
    graphed = isinstance(head, FusedHead) and "graphs" in form
    tapes = in_graphs(head, monkeypatch) if isinstance(head, FusedHead) and graphed else []
    with torch.no_grad():
        expected = head.estimate(features, (50, 70))
        if not head.early_levels:
            return
        known = {level: features.levels[level] for level in head.early_levels}
        for _ in range(3):  # as it is, recorded, replayed
            early = head.early(TowerFeatures(known, None, features.grid))
            again = head.estimate(features, (50, 70), early=early)
            assert torch.equal(again.metres, expected.metres)
            if expected.log_scale is not None and again.log_scale is not None:
                assert torch.equal(again.log_scale, expected.log_scale)
        assert [tape.recorded for tape in tapes] == [1] * len(tapes)
        doubled = [2 * x_BCHW for x_BCHW in early]
        assert not torch.equal(head(features, (50, 70), early=doubled), expected.metres)


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


def test_a_head_trained_with_synchronised_norms() -> None:
    """As ``sync_batch_norm: true`` leaves it; another norm is refused, not left out."""
    head: DepthHead = nn.SyncBatchNorm.convert_sync_batchnorm(make_head("fast"))
    features = make_features(head)
    with torch.no_grad():
        torch.testing.assert_close(head.fused()(features), head(features), rtol=1e-4, atol=1e-4)
    blocks = [one for one in head.modules() if isinstance(one, ConvNormGELU)]
    assert all(isinstance(block.norm, nn.SyncBatchNorm) for block in blocks)
    blocks[0].norm = nn.InstanceNorm2d(8)
    with pytest.raises(KernelError, match="has a InstanceNorm2d: run the plain head"):
        head.fused()
    blocks[0].norm = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(KernelError, match=r"one without .*: run the plain head"):
        head.fused()


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

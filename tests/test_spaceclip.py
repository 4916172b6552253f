"""Parity with the published head, on numbers that its authors' code gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipdepth_plugin import TowerFeatures, load_spaceclip
from clipdepth_plugin.errors import HeadFileError

REFERENCE = Path(__file__).parent / "fixtures" / "spaceclip_clip_early.safetensors"
ATOL = 1e-5
EARLY: dict[str, Any] = {"semantic_levels": (12, 9, 6, 3), "structural_levels": (2, 1, 0)}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with safe_open(REFERENCE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    with safe_open(REFERENCE, "pt") as file:
        return dict(json.loads(file.metadata()["config"]))


@pytest.fixture
def state(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("state."): x for k, x in reference.items() if k.startswith("state.")}


@pytest.fixture
def features(reference: dict[str, Tensor], published: dict[str, Any]) -> TowerFeatures:
    side = published["image"] // published["patch"]
    levels = {k: reference[f"hidden_states.{k}"][:, 1:] for k in range(13)}
    return TowerFeatures(levels, reference["pooler_output"], (side, side))


def test_same_numbers(
    reference: dict[str, Tensor], state: dict[str, Tensor], features: TowerFeatures
) -> None:
    head = load_spaceclip(state, **EARLY)
    with torch.no_grad():
        native, (metres, auxiliary) = head(features), head.forward_with_aux(features, (48, 80))
    torch.testing.assert_close(native, reference["depth.native"], rtol=0, atol=ATOL)
    torch.testing.assert_close(metres, reference["depth.48x80"], rtol=0, atol=ATOL)
    assert len(auxiliary) == 3
    for i, x in enumerate(auxiliary):
        torch.testing.assert_close(x, reference[f"aux.{i}.48x80"], rtol=0, atol=ATOL)
    # The comparison means something: the maps are not flat.
    assert reference["depth.native"].std() > 1e-3


def test_config_is_read_off_the_shapes(state: dict[str, Tensor], published: dict[str, Any]) -> None:
    config = load_spaceclip(state, **EARLY).config
    assert config.width == published["hidden"]
    assert list(config.channels) == published["decoder_channels"]
    assert config.film_hidden == published["film_param_hidden_dim"]
    assert (config.film, config.structural, config.auxiliary) == (True, True, 3)
    assert (config.activation, config.norm, config.preset) == ("relu", "batch", "spaceclip")


def test_middle_levels_are_read(state: dict[str, Tensor], features: TowerFeatures) -> None:
    early = load_spaceclip(state, **EARLY)
    middle = load_spaceclip(state, semantic_levels=(12, 9, 6, 3), structural_levels=(7, 5, 4))
    assert middle.config.levels == (3, 4, 5, 6, 7, 9, 12)
    assert not torch.equal(early(features), middle(features))


def _wrap_model(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"model": {f"module.{k}": x for k, x in state.items()}, "optimizer": {}, "epoch": 3}


def _with_tower(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "clip_vision_model.encoder.layers.0.weight": torch.zeros(1)}


def _without_counters(state: dict[str, Tensor]) -> dict[str, Any]:
    return {k: x for k, x in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrap", [_wrap_model, _with_tower, _without_counters])
@pytest.mark.parametrize("kind", ["dict", "pt", "safetensors"])
def test_sources(
    wrap: Any, kind: str, state: dict[str, Tensor], features: TowerFeatures, tmp_path: Path
) -> None:
    source: Any = wrap(state)
    if kind == "pt":
        torch.save(source, tmp_path / "best.pt")
        source = tmp_path / "best.pt"
    elif kind == "safetensors":
        save_file(source.get("model", source), tmp_path / "best.safetensors")
        source = str(tmp_path / "best.safetensors")
    head = load_spaceclip(source, **EARLY)
    torch.testing.assert_close(head(features), load_spaceclip(state, **EARLY)(features))


def _keep(state: dict[str, Tensor], *dropped: str) -> dict[str, Tensor]:
    return {k: x for k, x in state.items() if not k.startswith(dropped)}


def test_without_film(state: dict[str, Tensor], features: TowerFeatures) -> None:
    """As with MLPs that give gamma 1 and beta 0 whatever the context."""
    head = load_spaceclip(_keep(state, "film_param_generators"), **EARLY)
    assert not head.config.film
    neutral = dict(state)
    for i in range(4):
        last = f"film_param_generators.{i}.2"
        neutral[f"{last}.weight"] = torch.zeros_like(state[f"{last}.weight"])
        gamma_D, beta_D = state[f"{last}.bias"].chunk(2)
        neutral[f"{last}.bias"] = torch.cat((torch.ones_like(gamma_D), torch.zeros_like(beta_D)))
    no_context = TowerFeatures(features.levels, None, features.grid)
    with torch.no_grad():
        got, expected = head(no_context), load_spaceclip(neutral, **EARLY)(features)
        modulated = load_spaceclip(state, **EARLY)(features)
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)
    assert (expected - modulated).abs().max() > 1e-3


def test_without_auxiliary(state: dict[str, Tensor], features: TowerFeatures) -> None:
    head = load_spaceclip(_keep(state, "aux_depth_heads"), **EARLY)
    assert head.config.auxiliary == 0
    assert torch.equal(head(features), load_spaceclip(state, **EARLY)(features))


def test_without_structural_pathway(
    state: dict[str, Tensor], features: TowerFeatures, published: dict[str, Any]
) -> None:
    """As a full head whose fusion takes nothing from its structural skips.

    The authors' fusion convolutions take (u, semantic skip, structural skip), in this order.
    """
    without = _keep(state, "structural_")
    without = {k: x for k, x in without.items() if "skip_struct_gate" not in k}
    unused = dict(state)
    for i, channels in enumerate(published["decoder_channels"][:-1]):
        key = f"main_decoder_blocks.{i}.fusion_conv.0.weight"
        assert state[key].shape[1] == 3 * channels
        without[key] = state[key][:, : 2 * channels].clone()
        unused[key] = state[key].clone()
        unused[key][:, 2 * channels :] = 0
    head = load_spaceclip(without, semantic_levels=(12, 9, 6, 3), structural_levels=())
    assert not head.config.structural
    with torch.no_grad():
        got, expected = head(features), load_spaceclip(unused, **EARLY)(features)
        full = load_spaceclip(state, **EARLY)(features)
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)
    # The comparison means something: the structural skips matter, and the map is not flat.
    assert (expected - full).abs().max() > 1e-3
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing: main_decoder_blocks.2.fusion_conv.0.weight"),
        ("unexpected", "unexpected key 'main_decoder_blocks.0.extra.weight'"),
        ("shape", "of another shape: fusion.1.up.upsample.weight"),
        ("empty", "missing: main_path_projections.0.weight"),
        ("number", "epoch is a int, expected a tensor"),
    ],
)
def test_bad_state(change: str, message: str, state: dict[str, Tensor]) -> None:
    changed: dict[str, Any] = dict(state)
    if change == "missing":
        del changed["main_decoder_blocks.2.fusion_conv.0.weight"]
    elif change == "unexpected":
        changed["main_decoder_blocks.0.extra.weight"] = torch.zeros(1)
    elif change == "shape":
        changed["main_decoder_blocks.1.upsample_low.upsample.weight"] = torch.zeros(1, 2, 2, 2)
    elif change == "empty":
        changed = {}
    else:
        changed["epoch"] = 3
    with pytest.raises(HeadFileError, match=message):
        load_spaceclip(changed, **EARLY)


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploited"),))


@pytest.mark.parametrize("name", ["missing.pt", "cut.pt", "cut.safetensors", "code.pt", "list.pt"])
def test_bad_files(
    name: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name == "cut.pt":
        torch.save(state, path)
    elif name == "cut.safetensors":
        save_file(state, path)
    elif name == "code.pt":
        torch.save({"model": _Exploit()}, path)
    elif name == "list.pt":
        torch.save([1, 2], path)
    if name.startswith("cut"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(HeadFileError, match=name):
        load_spaceclip(path, **EARLY)
    assert not (tmp_path / "exploited").exists()

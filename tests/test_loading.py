"""Hosts by name, on local folders and caches of tiny random models: no download anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import HostError

WEIGHTS = "model.safetensors"
CLIP_WEIGHTS = "open_clip_model.safetensors"
TIMM_NAME = "test_vit"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def save_hf(folder: Path) -> nn.Module:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    model: Any = Dinov2Model(config)
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "size": {"height": 28, "width": 42},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return cast("nn.Module", model.eval())


def save_open_clip(folder: Path) -> nn.Module:
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "layers": 3,
            "width": 32,
            "head_width": 8,
            "patch_size": 8,
            "image_size": 32,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
    }
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    (folder / "open_clip_config.json").write_text(text)
    model: nn.Module = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / CLIP_WEIGHTS)
    return model.eval()


def save_timm(folder: Path) -> nn.Module:
    model = timm.create_model(TIMM_NAME, num_classes=7)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model.eval()


Saver = Callable[[Path], nn.Module]
SAVERS: dict[str, Saver] = {"hf": save_hf, "open_clip": save_open_clip, "timm": save_timm}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("prefix", ["", "scheme"])
def test_local_folders(tmp_path: Path, kind: str, prefix: str) -> None:
    saved = SAVERS[kind](tmp_path)
    spec = f"{kind}:{tmp_path}" if prefix else str(tmp_path)
    state = torch.get_rng_state()
    host = load_host(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert host.name == spec
    assert not any(module.training for module in host.model.modules())
    assert {parameter.dtype for parameter in host.model.parameters()} == {torch.float32}
    for name, value in saved.state_dict().items():
        assert torch.equal(host.model.state_dict()[name], value), name


@pytest.mark.parametrize("kind", SAVERS)
def test_random_weights_need_only_the_config_and_repeat(tmp_path: Path, kind: str) -> None:
    saved = SAVERS[kind](tmp_path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    first, second = (load_host(str(tmp_path), random_weights=True).model for _ in range(2))
    assert first.state_dict().keys() == saved.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_hf_preprocessing_is_read(tmp_path: Path) -> None:
    save_hf(tmp_path)
    preprocessing = load_host(str(tmp_path)).preprocessing
    assert preprocessing is not None
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert preprocessing.size == (28, 42)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_host(str(tmp_path)).preprocessing is None


def test_open_clip_preprocessing_stays_on_the_model(tmp_path: Path) -> None:
    save_open_clip(tmp_path)
    model: Any = load_host(str(tmp_path)).model
    assert model.visual.preprocess_cfg["mean"] == [0.1, 0.2, 0.3]


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
    ).half().save_pretrained(tmp_path)
    model = load_host(str(tmp_path)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", SAVERS)
def test_pickles_in_folders_are_refused(tmp_path: Path, kind: str) -> None:
    model = SAVERS[kind](tmp_path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    for name in ("pytorch_model.bin", "open_clip_pytorch_model.bin"):
        torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(HostError, match=r"no weights in .*safetensors.*pytorch_model\.bin"):
        load_host(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "name"), [("hf", WEIGHTS), ("open_clip", CLIP_WEIGHTS), ("timm", WEIGHTS)]
)
def test_truncated_weights_are_an_error(tmp_path: Path, kind: str, name: str) -> None:
    SAVERS[kind](tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(HostError, match="could not be loaded") as caught:
        load_host(str(tmp_path))
    assert caught.value.__cause__ is not None


def test_weights_that_lack_part_of_the_tower_are_an_error(tmp_path: Path) -> None:
    save_hf(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    kept = {name: value for name, value in state.items() if "layer.1." not in name}
    save_file(kept, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(HostError, match=r"lack \d+ tensors of the vision tower"):
        load_host(str(tmp_path))


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file({"w": torch.zeros(1)}, tmp_path / WEIGHTS)
    for random_weights in (False, True):
        with pytest.raises(HostError):
            load_host(str(tmp_path), random_weights=random_weights)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "is not valid JSON"),
        ({"config.json": "[]"}, "expected a JSON object"),
        ({"config.json": "{}"}, "unknown which library"),
    ],
    ids=["empty", "broken", "list", "unknown"],
)
def test_odd_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(HostError, match=message):
        load_host(str(tmp_path))


def test_a_head_is_not_a_host(tmp_path: Path) -> None:
    from clipdepth_plugin import DepthHead, HeadConfig

    DepthHead(HeadConfig(width=8, channels=(4, 4, 4, 4), film_hidden=8)).save_pretrained(tmp_path)
    with pytest.raises(HostError, match="this is a depth head, not a host; use --head"):
        load_host(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "neither a known scheme nor a folder"),
        ("ftp:model", "neither a known scheme nor a folder"),
        ("hf:", "neither a known scheme nor a folder"),
        ("hf:org/there-is-no-such-model", "could not be loaded"),
        ("timm:vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("timm:hf-hub:org/there-is-no-such-model", "could not be loaded"),
        ("open_clip:ViT-B-61/openai", "did you mean ViT-B-16"),
        ("open_clip:ViT-B-16", "a tag must say which weights; known are openai"),
        ("open_clip:ViT-B-16/mine", "no weights are tagged 'mine'; known are openai"),
        ("open_clip:hf-hub:org/there-is-no-such-model", "could not be loaded"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(HostError, match=message):
        load_host(spec)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(HostError, match=r"timm is not installed.*clipdepth-plugin\[hosts\]"):
        load_host(f"timm:{TIMM_NAME}")


def test_random_weights_of_a_tag_carry_its_activation_and_normalisation() -> None:
    model: Any = load_host("open_clip:ViT-B-32/openai", random_weights=True).model
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert model.visual.preprocess_cfg["mean"][0] == pytest.approx(0.48145466)


def cache(home: Path, repository: str, save: Saver) -> None:
    """Puts a model where huggingface_hub keeps what it has downloaded."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    revision = "0" * 40
    (folder / "refs" / "main").write_text(revision)
    save(folder / "snapshots" / revision)


def test_cached_hosts_load_offline(tmp_path: Path) -> None:
    for kind, save in SAVERS.items():
        cache(tmp_path, f"org/tiny-{kind}", save)
    program = """
        from clipdepth_plugin.adapters.loading import load_host
        for name in ("hf:", "open_clip:hf-hub:", "timm:hf-hub:"):
            for random_weights in (False, True):
                spec = name + "org/tiny-" + name.split(":")[0]
                print(type(load_host(spec, random_weights=random_weights).model).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines())],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Dinov2Model"] * 2 + ["CLIP"] * 2 + ["VisionTransformer"] * 2

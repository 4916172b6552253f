"""Folders of hosts whose files name pickles or files outside of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import HostError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A host in two shards."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model: Any = Dinov2Model(config)
    path = tmp_path / "host"
    model.save_pretrained(path, max_shard_size="10KB")
    assert (path / INDEX).is_file()
    return path


def _renamed(name: str) -> Callable[[Path], None]:
    """Lets the index name another file for its first shard, which is there and would load."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        shards = index["weight_map"]
        first = min(set(shards.values()))
        target = folder / name.replace("ABSOLUTE", str(folder.parent))
        if target.suffix == ".safetensors":
            (folder / first).rename(target)
        else:
            torch.save(load_file(folder / first), target)
        for key, value in shards.items():
            shards[key] = str(target) if "ABSOLUTE" in name else name if value == first else value
        (folder / INDEX).write_text(json.dumps(index))

    return change


def _linked(folder: Path) -> None:
    shard = min(folder.glob("*.safetensors"))
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def _looped(folder: Path) -> None:
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(shard)


def _config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def _file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        _renamed("shard.bin"),
        _renamed("shard.PT"),
        _renamed("../shard.safetensors"),
        _renamed("x/../../shard.safetensors"),
        _renamed("ABSOLUTE/shard.safetensors"),
        _linked,
        _looped,
        _config(transformers_weights="adapter_model.bin"),
        _config(transformers_weights="../x.safetensors"),
        _config(transformers_weights=7),
        _file("adapter_config.json", '{"base_model_name_or_path": "/"}'),
        _file(INDEX, "[" * 100_000),
        _file(INDEX, '{"weight_map": {"a": 1}}'),
        _file(INDEX, "[]"),
        _file("config.json", "[" * 100_000),
    ],
)
def test_a_host_is_read_from_its_own_safetensors_alone(
    folder: Path, change: Callable[[Path], object]
) -> None:
    load_host(str(folder))
    (folder / "x").mkdir()
    change(folder)
    for spec in (str(folder), f"hf:{folder}"):
        with pytest.raises(HostError, match=r"safetensors only|outside|adapter|weight_map|JSON"):
            load_host(spec)


def test_links_inside_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--x"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (repo / "blobs" / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    load_host(str(snapshot))


@pytest.mark.parametrize("name", ["LOCAL-DIR:{}", "Local-Dir:{}", "file:{}", "https://x/{}"])
def test_other_schemes_of_timm_are_refused(name: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(HostError, match="expected a name"):
        load_host(f"timm:{name.format(tmp_path)}")

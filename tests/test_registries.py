"""Families, processors and libraries of hosts register themselves, each only once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from clipdepth_plugin import find_towers
from clipdepth_plugin.adapters.families import registry as families
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.loading import registry as loading
from clipdepth_plugin.adapters.processors import registry as processors
from clipdepth_plugin.adapters.traits import TowerTraits
from clipdepth_plugin.errors import HostError


def test_a_tower_of_two_families_is_refused(
    make_host: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host("hf_clip_vision")
    assert [tower.family for tower in find_towers(host)] == ["hf_clip"]
    read = [*families._READERS, lambda *_: TowerTraits("mine", 1, has_class_token=True)]
    monkeypatch.setattr(families, "_READERS", read)
    with pytest.raises(HostError, match="families hf_clip, mine all recognise this tower"):
        find_towers(host)


def test_nothing_registers_twice() -> None:
    processors.reader_of("MllamaImageProcessor")
    with pytest.raises(ValueError, match="two readers of this image processor"):
        processors.register("MllamaImageProcessor")(lambda *_: processors.Read((1, 1)))
    loading.loader_of("demo")
    with pytest.raises(ValueError, match="two libraries of the scheme 'hf'"):
        loading.register("hf", loading.Library(lambda *_: loading.Loaded(nn.Identity()), "hf:X"))


def test_readers_go_by_the_class_whatever_library_of_images_it_works_on() -> None:
    readers = [
        processors.reader_of(f"MllamaImageProcessor{end}").read for end in ("", "Fast", "Pil")
    ]
    assert len(set(readers)) == 1
    assert processors.reader_of("MllamaImageProcessorPlus").read not in readers


def test_a_built_in_config_is_a_host() -> None:
    host = load_host("config:vit-b-16")
    assert host.label == "CLIP ViT-B/16 at 224"
    (tower,) = find_towers(host.model)
    assert (tower.depth, tower.width) == (12, 768)

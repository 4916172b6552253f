"""A host with one of our heads as a depth source: the maps of predict and eval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from clipdepth_plugin import DepthPlugin
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.labelling.source import Picture, open_source
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.shipped import load_head
from tests.tiny.heads import small_head


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dinov2 of four blocks, in a folder."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, patch_size=8, image_size=32)).save_pretrained(
        folder
    )
    said = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.25] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def named(tower: Path, tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """Saves a head for the tower; the source's name and the head's folder."""

    def save(**options: Any) -> tuple[str, Path]:
        host = load_host(str(tower)).model
        head = small_head(host, semantic_levels=(4, 3, 2, 1), **options)
        head.save_pretrained(tmp_path / "head")
        return f"head:{tmp_path / 'head'}@{tower}", tmp_path / "head"

    return save


def picture(seed: int, height: int, width: int, focal: float | None = None) -> Picture:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    camera = (focal, focal, width / 2, height / 2) if focal else None
    return Picture(f"seq/{seed}", np.asarray(small.resize((width, height))), camera)


@pytest.mark.parametrize("options", [{}, {"confidence": True, "canonical_focal": 30.0}])
def test_labels_are_the_maps_of_predict(
    options: dict[str, Any], named: Callable[..., tuple[str, Path]], tower: Path
) -> None:
    name, folder = named(**options, provenance={"license": "CC-BY-4.0"})
    source = open_source(name)
    knows = "canonical_focal" in options
    assert (source.card.units, source.card.licence) == ("metres", "CC-BY-4.0")
    assert (source.card.reads_focal, source.card.max_depth) == (knows, None if knows else 20.0)
    host = load_host(str(tower))
    plugin = DepthPlugin(host.model, load_head(str(folder)), processor=host.preprocessing)
    depth_of = PictureDepth(plugin)
    pictures = [picture(0, 40, 60, 50.0), picture(1, 50, 30), picture(2, 40, 60)]
    for one, label in zip(pictures, source.label(pictures), strict=True):
        cameras = [one.intrinsics] if knows else None
        map_CHW = depth_of([Image.fromarray(one.image_HW3)], cameras)[0]
        np.testing.assert_allclose(label.depth_HW, map_CHW[0], rtol=1e-5)
        assert np.isnan(label.depth_HW).any()  # what the host crops away
        if knows:
            assert label.confidence_HW is not None
            np.testing.assert_allclose(label.confidence_HW, map_CHW[1], rtol=1e-4)
        else:
            assert label.confidence_HW is None


def test_a_picture_of_one_colour_has_no_depth(named: Callable[..., tuple[str, Path]]) -> None:
    (label,) = open_source(named()[0]).label([Picture("seq/0", np.zeros((40, 60, 3), np.uint8))])
    assert np.isnan(label.depth_HW).all()


def test_a_head_that_is_not_metric_labels_inverse_depth(
    named: Callable[..., tuple[str, Path]],
) -> None:
    one = picture(0, 40, 60)
    metres = open_source(named(confidence=False)[0]).label([one])[0].depth_HW
    source = open_source(named(confidence=False, metric=False)[0])
    assert source.card.units == "inverse depth"
    assert not source.card.reads_focal
    assert source.card.max_depth is None
    np.testing.assert_allclose(source.label([one])[0].depth_HW, 1 / metres, rtol=1e-5)


def test_version_and_dtype(named: Callable[..., tuple[str, Path]]) -> None:
    name, _ = named()
    exact, half = open_source(name), open_source(name, dtype="bfloat16")
    assert exact.card.version == half.card.version
    one = picture(0, 40, 60)
    exact_HW, half_HW = (source.label([one])[0].depth_HW for source in (exact, half))
    np.testing.assert_allclose(half_HW, exact_HW, rtol=0.1)
    assert (half_HW != exact_HW)[~np.isnan(exact_HW)].any()
    named(structural=False)
    assert open_source(name).card.version != exact.card.version


def test_a_camera_that_cannot_be_names_the_picture(
    named: Callable[..., tuple[str, Path]],
) -> None:
    source = open_source(named(canonical_focal=30.0)[0])
    with pytest.raises(SourceError, match=r"failed on seq/0 .*as no lens does"):
        source.label([picture(0, 40, 60, 0.01)])

"""Damaged pictures, heads, configs and data sets: errors of ours, or right answers."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from clipdepth_plugin import DepthHead, HeadConfig
from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.files.documents import parse_json, parse_yaml
from clipdepth_plugin.files.pictures import load_image
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.training.config_file import load_config
from tests.fuzz.running import VALUES, damaged, fuzz

CONFIGS = Path(__file__).parents[2] / "configs"


def _pictures() -> list[bytes]:
    rgb_HW3 = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    found = []
    for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        file = io.BytesIO()
        Image.fromarray(rgb_HW3).save(file, format=form)
        found.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(rgb_HW3[..., 0].astype(np.uint16)).save(file, format="PNG")
    return [*found, file.getvalue()]


def test_pictures(tmp_path: Path) -> None:
    def check(content: bytes) -> None:
        path = tmp_path / "x.jpg"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on what it reads all the same
            try:
                image = load_image(path)
            except ClipDepthError:
                return
        assert image.mode == "RGB"

    fuzz(st.sampled_from(_pictures()).flatmap(damaged), check)


def _small_head() -> DepthHead:
    return DepthHead(HeadConfig(width=8, channels=(4, 4, 4, 4), film_hidden=4))


def _changed(tree: dict[str, Any], fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """The tree with some fields changed and others added or left out."""
    edits = st.dictionaries(
        st.one_of(st.sampled_from(fields), st.text(max_size=6)), VALUES, min_size=1, max_size=3
    )
    return st.tuples(edits, st.sets(st.sampled_from(fields), max_size=1)).map(
        lambda drawn: {
            key: value for key, value in {**tree, **drawn[0]}.items() if key not in drawn[1]
        }
    )


def test_head_files(tmp_path: Path) -> None:
    _small_head().save_pretrained(tmp_path)
    config_file, weights_file = tmp_path / "config.json", tmp_path / "model.safetensors"
    text, weights = config_file.read_bytes(), weights_file.read_bytes()
    config = json.loads(text)
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    changed = _changed(config, list(config)).map(lambda tree: json.dumps(tree).encode())

    def check(drawn: tuple[bytes, bytes]) -> None:
        config_file.write_bytes(drawn[0])
        weights_file.write_bytes(drawn[1])
        try:
            head = DepthHead.from_pretrained(tmp_path)
        except ClipDepthError:
            return
        width = head.config.width
        tokens = {level: torch.ones(1, 4, width) for level in head.config.levels}
        size = (2 * 16, 2 * 16)
        pixels = torch.zeros(1, 3, *size) if head.reads_pixels else None
        context = torch.ones(1, width) if head.config.film else None
        depth = head(TowerFeatures(tokens, context, (2, 2), pixels), size)
        assert depth.shape == (1, 1, *size)
        assert all(bool(x.isfinite().all()) for x in head.state_dict().values())

    fuzz(
        st.one_of(
            st.tuples(changed, st.just(weights)),
            st.tuples(damaged(text), st.just(weights)),
            st.tuples(
                st.just(text), damaged(header).map(lambda start: start + weights[len(header) :])
            ),
            st.tuples(st.just(text), damaged(weights)),
        ),
        check,
    )


def test_configs(tmp_path: Path) -> None:
    whole = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    path = tmp_path / "config.yaml"
    text = (CONFIGS / "demo.yaml").read_bytes()
    fields = list(HeadConfig.model_fields)

    def as_training(content: bytes) -> None:
        path.write_bytes(content)
        load_config(path)

    def as_head(tree: dict[str, Any]) -> None:
        config = checked(HeadConfig, tree, "config", ClipDepthError)
        with torch.device("meta"):
            DepthHead(config)

    def check(drawn: tuple[str, Any]) -> None:
        kind, value = drawn
        try:
            if kind == "head":
                as_head(value)
            elif kind == "yaml":
                parse_yaml(value, "text", ClipDepthError)
                parse_json(value, "text", ClipDepthError)
            else:
                as_training(value)
        except ClipDepthError:
            return

    heads = st.sampled_from(list(PRESETS)).flatmap(
        lambda preset: _changed({"width": 8, "preset": preset}, fields)
    )
    fuzz(
        st.one_of(
            st.tuples(st.just("head"), heads),
            st.tuples(st.just("yaml"), st.text("[]{}&*a:- \n,<>!?|'\"1.", max_size=60)),
            st.tuples(
                st.just("training"),
                _changed(whole, list(whole)).map(lambda tree: json.dumps(tree).encode()),
            ),
            st.tuples(st.just("training"), damaged(text)),
        ),
        check,
    )


@pytest.fixture
def rgbd(tmp_path: Path) -> Path:
    frames = tmp_path / "train" / "a"
    frames.mkdir(parents=True)
    Image.new("RGB", (8, 6), (9, 9, 9)).save(frames / "0.jpg")
    Image.fromarray(np.full((6, 8), 1500, np.uint16)).save(frames / "0.depth.png")
    return tmp_path


def test_data_sets(rgbd: Path) -> None:
    meta = {"depth_scale": 1000, "intrinsics": {"default": [9, 9, 3, 2]}, "sequences": {}}
    meta = {**meta, "max_depth_m": 9.0, "sources": {}}
    cameras = b'{"0": [9, 9, 3.5, 2.5]}'
    line = b"train/a/0.jpg train/a/0.depth.png 518.8\n"
    config: dict[str, Any] = {"format": "rgbd", "root": str(rgbd)}

    def check(drawn: tuple[str, bytes]) -> None:
        name, content = drawn
        (rgbd / "meta.json").write_text(json.dumps(meta))
        (rgbd / "train/a/intrinsics.json").write_bytes(cameras)
        (rgbd / name).write_bytes(content)
        listed = {"format": "nyu", "root": str(rgbd), "files": "list.txt"}
        try:
            data = open_dataset(DataConfig(**(listed if name == "list.txt" else config)))
            assert isinstance(data, SampleDataset)
            sample = data[0]
        except ClipDepthError:
            return
        assert sample.depth_1HW.shape[1:] == sample.image_3HW.shape[1:] == (6, 8)
        assert bool(sample.depth_1HW.isfinite().all())
        if sample.intrinsics is not None:
            assert bool(torch.tensor(sample.intrinsics).isfinite().all())

    as_json = VALUES.map(lambda value: json.dumps(value).encode())
    fuzz(
        st.one_of(
            st.tuples(
                st.just("meta.json"),
                _changed(meta, list(meta)).map(lambda tree: json.dumps(tree).encode()),
            ),
            st.tuples(st.just("train/a/intrinsics.json"), st.one_of(as_json, damaged(cameras))),
            st.tuples(
                st.just("train/a/intrinsics.json"),
                VALUES.map(lambda value: json.dumps({"0": value}).encode()),
            ),
            st.tuples(st.just("list.txt"), damaged(line)),
        ),
        check,
    )

"""``clipdepth inspect``: towers, token orders, tiling, views."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from clipdepth_plugin import find_towers
from clipdepth_plugin.cli.inspect import describe_tower
from tests.tiny.command_line import PROCESSOR, run, tiny_host, words
from tests.tiny.packed import PACKED
from tests.tiny.table import BY_NAME

PACKED_BY_NAME = {case.name: case for case in PACKED}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_host(tmp_path_factory)


def test_inspect_json(host: Path) -> None:
    result = run("inspect", host, "--json")
    assert result.exit_code == 0, result.output
    (tower,) = json.loads(result.stdout)["towers"]
    assert tower["depth"] == 4
    assert tower["width"] == 32
    assert tower["patch_size"] == [8, 8]
    assert tower["grid"] == [4, 4]
    assert tower["num_prefix_tokens"] == 1
    assert tower["contexts"] == ["pooled", "cls", "mean"]
    assert tower["normalisation"]["mean"] == [0.5, 0.5, 0.5]


def test_inspect_table(host: Path) -> None:
    result = run("inspect", host)
    assert result.exit_code == 0, result.output
    for shown in ("depth", "4 x 4", "pooled, cls, mean", "0.5, 0.5, 0.5"):
        assert shown in words(result.stdout)


def test_inspect_shows_names_as_they_are(host: Path, tmp_path: Path) -> None:
    (tmp_path / "[").mkdir()
    (tmp_path / "[" / "b]").symlink_to(host)  # the path has a closing tag: [/b]
    result = run("inspect", tmp_path / "[" / "b]")
    assert result.exit_code == 0, result.output
    assert "[/b]" in result.stdout


def test_inspect_shows_all_of_a_multimodal_host(tmp_path: Path) -> None:
    """Where the tower is, how its tokens lie, how pictures are cut, views."""
    BY_NAME["llava_next"].host().save_pretrained(tmp_path)  # type: ignore[operator]
    tiled = {
        **PROCESSOR,
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_grid_pinpoints": [[32, 64], [64, 32]],
        "do_pad": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tiled))
    result = run("inspect", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    (tower,) = json.loads(result.stdout)["towers"]
    assert (tower["path"], tower["inside"]) == ("vision_tower", ["LlavaNextModel"])
    assert (tower["family"], tower["num_prefix_tokens"]) == ("hf_clip", 1)
    assert (tower["token_order"], tower["takes"]) == ("row-major", ["images", 3, "H", "W"])
    assert tower["views"][0].startswith("AnyRes(")
    assert tower["trim"]["blocks"] == ["vision_tower.encoder.layers.3"]
    shown = words(re.sub("[│┃]", " ", run("inspect", tmp_path).stdout))
    for part in ("LlavaNextModel", "row-major", "AnyRes(", "layers.3 left out"):
        assert part in shown


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("qwen2_5_vl", "squares of 2 x 2 patches, those in windows of 2 x 2 squares"),
        ("qwen3_vl", "packed in merge order, squares of 2 x 2 patches"),
        ("siglip2", "NaFlex: row-major, padded to the longest"),
        ("pixtral", "packed: pictures one after another, each row-major"),
        ("mllama", "row-major tiles, each padded; padding tiles between"),
        ("idefics2", "row-major, cut to patch_attention_mask where it is given"),
    ],
)
def test_inspect_says_how_packed_tokens_lie(name: str, order: str) -> None:
    host = PACKED_BY_NAME[name].host()
    (tower,) = find_towers(host)
    described = describe_tower(host, tower, None)
    assert described["token_order"].endswith(order)
    json.dumps(described)


def test_inspect_without_weights(host: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((host / "config.json").read_bytes())
    assert run("inspect", tmp_path).exit_code == 2
    result = run("inspect", tmp_path, "--random-weights", "--json")
    assert json.loads(result.stdout)["towers"][0]["depth"] == 4


def test_inspect_of_a_host_without_a_tower(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=9,
    )
    BertModel(config).save_pretrained(tmp_path)
    result = run("inspect", tmp_path, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no vision tower" in words(result.stderr)

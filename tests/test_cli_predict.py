"""``clipdepth predict``, run as a user runs it, on a tiny host and head in folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ViTConfig,
    ViTModel,
)

from clipdepth_plugin import DepthHead, DepthPlugin, attach, find_towers
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.cli.predict_sources import frames_in_order
from clipdepth_plugin.config import Provenance
from clipdepth_plugin.files.pictures import load_image
from tests.tiny.command_line import run, save_pictures, tiny_host, words
from tests.tiny.depth_png import read_depth_png


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_host(tmp_path_factory)


@pytest.fixture(scope="module")
def head(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    DepthHead.for_host(
        load_host(str(host)).model,
        preset="spaceclip",
        channels=(8, 8, 8, 8),
        film_hidden=8,
        activation="log",
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    save_pictures(folder, {"a.png": (40, 60), "b.jpg": (33, 21), "c.png": (1, 1)})
    return folder


def test_predict_writes_every_map_at_its_pictures_size(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "output"
    options = ("--host", host, "--head", head, "-o", output)
    result = run("predict", pictures, *options, "--npy", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "3 depth maps in" in words(result.stderr)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{stem}.{kind}" for stem in "abc" for kind in ("depth.png", "colour.png", "npy")
    )
    for name, size in (("a", (40, 60)), ("b", (33, 21)), ("c", (1, 1))):
        metres_HW = np.load(output / f"{name}.npy")
        assert metres_HW.shape == size
        np.testing.assert_allclose(
            read_depth_png(output / f"{name}.depth.png"), metres_HW, atol=0.00051
        )


def test_predict_gives_what_the_plugin_gives(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    picture = pictures / "square.png"
    load_image(pictures / "a.png").resize((32, 32)).save(picture)
    result = run("predict", picture, "--host", host, "--head", head, "-o", tmp_path, "--npy")
    assert result.exit_code == 0, result.output
    loaded = load_host(str(host))
    assert loaded.preprocessing is not None
    pixels_BCHW = to_pixels([load_image(picture)], loaded.preprocessing)
    with attach(loaded.model, DepthHead.from_pretrained(head)) as plugin, torch.no_grad():
        expected_HW = plugin(pixels_BCHW)[0, 0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "square.npy"), expected_HW, rtol=1e-5)


def test_predict_writes_the_confidence_where_the_head_has_one(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    loaded = load_host(str(host))
    assert loaded.preprocessing is not None
    sure = DepthHead.for_host(loaded.model, preset="fast", confidence=True).eval()
    sure.save_pretrained(tmp_path / "sure")
    load_image(pictures / "a.png").resize((32, 32)).save(pictures / "square.png")
    given = ("predict", pictures, "--host", host, "-o", pictures, "--npy", "--confidence")
    refused = run(*given, "--head", head)
    assert refused.exit_code == 2
    assert "predicts none (head.options.confidence" in words(refused.stderr)
    assert len(list(pictures.iterdir())) == 4
    for _ in range(2):  # nothing that it wrote is a picture to read
        result = run(*given, "--head", tmp_path / "sure", "--batch-size", "3")
        assert result.exit_code == 0, result.output
        assert len(list(pictures.iterdir())) == 4 * 6
    with attach(loaded.model, sure) as plugin, torch.no_grad():
        loaded.model(to_pixels([load_image(pictures / "square.png")], loaded.preprocessing))
        depth_HW, expected_HW = plugin.depth[0, 0], plugin.confidence[0, 0]
    written_HW = np.load(pictures / "square.confidence.npy")
    np.testing.assert_allclose(np.load(pictures / "square.npy"), depth_HW, rtol=1e-5)
    np.testing.assert_allclose(written_HW, expected_HW, rtol=1e-5)
    with Image.open(pictures / "square.confidence.png") as image:
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image), written_HW * 255, atol=0.501)


def test_predict_takes_the_pictures_focal_length(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    canonical = DepthHead.from_pretrained(head)
    canonical.config = canonical.config.model_copy(update={"canonical_focal": 40.0})
    canonical.save_pretrained(tmp_path / "canonical")
    picture = pictures / "a.png"  # 40 x 60: 32 x 32 for the tower
    maps = {}
    for name, options in (("plain", ()), ("given", ("--focal-px", "100"))):
        result = run(
            *("predict", picture, "--host", host, "--head", tmp_path / "canonical"),
            *("-o", tmp_path / name, "--npy", *options),
        )
        assert result.exit_code == 0, result.output
        assumed = "metres are those of a focal length of 40 px at 32 x 32"
        assert (assumed in words(result.stderr)) == (name == "plain")
        maps[name] = np.load(tmp_path / name / "a.npy")
    focal = 100 * math.sqrt(32 / 40 * 32 / 60)
    np.testing.assert_allclose(maps["given"], maps["plain"] * focal / 40, rtol=1e-5)
    refused = run(
        *("predict", picture, "--host", host, "--head", head, "-o", tmp_path / "no"),
        *("--focal-px", "100"),
    )
    assert refused.exit_code == 2
    assert "was trained without a canonical camera" in words(refused.stderr)
    assert not (tmp_path / "no").exists()


def test_another_tower_is_taken_where_that_is_said(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    stranger = DepthHead.from_pretrained(head)
    provenance = Provenance(tower="another", tower_hashes={"float32": "0" * 64})
    stranger.config = stranger.config.model_copy(update={"provenance": provenance})
    stranger.save_pretrained(tmp_path / "stranger")
    given = ("predict", pictures / "a.png", "--host", host, "--head", tmp_path / "stranger")
    refused = run(*given, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "the head was trained on another" in words(refused.stderr)
    taken = run(*given, "-o", tmp_path / "out", "--other-tower")
    assert taken.exit_code == 0, taken.output
    assert "are not those" in words(taken.stderr)


def test_predict_gives_the_plugin_the_towers_own_name(
    host: Path, head: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block list names one tower of several at a path; the path would not."""
    given = []

    def spy(*arguments: Any, tower: str | None, **options: Any) -> Any:
        given.append(tower)
        return DepthPlugin(*arguments, tower=tower, **options)

    monkeypatch.setattr("clipdepth_plugin.plugin.depth_plugin.DepthPlugin", spy)
    (found,) = find_towers(load_host(str(host)).model)
    options = ("--host", host, "--head", head, "--tower", found.blocks_path)
    result = run("predict", pictures / "a.png", *options, "-o", tmp_path / "output")
    assert result.exit_code == 0, result.output
    assert given == [found.blocks_path]


def test_predict_goes_on_after_an_unreadable_picture(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:100])
    (pictures / "empty.png").touch()
    output = tmp_path / "output"
    result = run("predict", pictures, "--host", host, "--head", head, "-o", output)
    assert result.exit_code == 1
    assert "broken.png" in result.stderr
    assert "empty.png: the file is empty" in words(result.stderr)
    assert "Traceback" not in result.output
    assert sorted(path.name for path in output.glob("*.depth.png")) == [
        "a.depth.png",
        "b.depth.png",
        "c.depth.png",
    ]


def test_predict_shows_names_as_they_are(
    host: Path, head: Path, pictures: Path, tmp_path: Path
) -> None:
    """Brackets are no markup in a name, colons no emoji."""
    (tmp_path / "host[").mkdir()
    (tmp_path / "host[" / "b]").symlink_to(host)  # the path has a closing tag: [/b]
    (pictures / "IMG[bold]:car:.jpg").touch()
    output = tmp_path / "out[final]"
    given = ("predict", pictures, "--host", tmp_path / "host[" / "b]", "--head", head)
    result = run(*given, "-o", output)
    assert result.exit_code == 1, result.output
    assert "out[final]" in words(result.stderr)
    assert "IMG[bold]:car:.jpg: the file is empty" in words(result.stderr)


@pytest.mark.parametrize(
    ("name", "options"), [("A.bmp", ()), ("a.confidence.jpg", ("--confidence", "--npy"))]
)
def test_predict_refuses_colliding_names_before_any_work(
    name: str, options: tuple[str, ...], pictures: Path, tmp_path: Path
) -> None:
    load_image(pictures / "a.png").save(pictures / name)
    output = tmp_path / "output"
    given = ("predict", pictures, "--host", "nonsense", "--head", "none", "-o", output)
    result = run(*given, *options)
    assert result.exit_code == 2
    assert "would both be written to" in words(result.stderr)
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--host": "nonsense"}, "neither a known scheme nor a folder"),
        ({"--head": "/there/is/no/head"}, "/there/is/no/head"),
        ({"--device": "abacus"}, "--device abacus"),
        ({"--tower": "text"}, "no vision tower at 'text'"),
    ],
    ids=["host", "head", "device", "tower"],
)
def test_wrong_options_are_one_message_and_write_nothing(
    host: Path,
    head: Path,
    pictures: Path,
    tmp_path: Path,
    change: dict[str, str],
    message: str,
) -> None:
    output = tmp_path / "output"
    options = {"--host": str(host), "--head": str(head), "-o": str(output), **change}
    result = run("predict", pictures, *(part for pair in options.items() for part in pair))
    assert result.exit_code == 2
    assert message in words(result.stderr)
    assert "Traceback" not in result.output
    assert not output.exists()


def test_predict_names_a_missing_picture(tmp_path: Path) -> None:
    result = run(
        "predict", tmp_path / "gone.png", "--host", "demo", "--head", "x", "-o", tmp_path / "o"
    )
    assert result.exit_code == 2
    assert "gone.png: no such file" in words(result.stderr)


def test_a_host_without_normalisation_is_an_error(pictures: Path, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    host = ViTModel(config)
    host.save_pretrained(tmp_path / "host")
    DepthHead.for_host(host, preset="fast").save_pretrained(tmp_path / "head")
    output = tmp_path / "output"
    given = ("--host", tmp_path / "host", "--head", tmp_path / "head")
    result = run("predict", pictures, *given, "-o", output)
    assert result.exit_code == 2
    assert "it is not known how pictures for" in words(result.stderr)
    assert not output.exists()


def test_predict_stabilises_the_frames_of_each_folder(
    host: Path, head: Path, tmp_path: Path
) -> None:
    """In the order of the numbers in their names; a folder is a camera of its own."""
    random, folders = np.random.default_rng(0), (tmp_path / "left", tmp_path / "right")
    for folder, first in zip(folders, (8, 108), strict=True):
        folder.mkdir()
        place_HW3 = random.integers(40, 200, (32, 32, 3))
        for frame in range(first, first + 4):
            noisy_HW3 = place_HW3 + random.integers(-9, 10, (32, 32, 3))
            Image.fromarray(noisy_HW3.astype(np.uint8)).save(folder / f"frame{frame}.png")
    (folders[0] / "frame9b.png").write_bytes(b"")
    given = ("predict", *folders, "--host", host, "--head", head, "--npy")
    for name, options in (("raw", ()), ("steady", ("--stream",))):
        assert run(*given, "-o", tmp_path / name, *options).exit_code == 1  # one can't be read
    loaded = load_host(str(host))
    assert loaded.preprocessing is not None
    with attach(loaded.model, DepthHead.from_pretrained(head)) as plugin, torch.no_grad():
        for folder, first in zip(folders, (8, 108), strict=True):
            stream = plugin.stream(folder.name)
            for frame in range(first, first + 4):
                stem = f"frame{frame}"
                picture = load_image(folder / f"{stem}.png")
                loaded.model(to_pixels([picture], loaded.preprocessing))
                raw, steady = (
                    np.load(tmp_path / name / f"{stem}.npy") for name in ("raw", "steady")
                )
                np.testing.assert_allclose(steady, stream.depth[0, 0], rtol=1e-5)
                np.testing.assert_allclose(raw, plugin.depth[0, 0], rtol=1e-5)
                assert np.array_equal(raw, steady) == (frame == first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--exported", "x", "--stream"), "--stream: an exported graph gives no tokens"),
        (("--host", "x", "--head", "y", "--stream", "--batch-size", "2"), "--batch-size: --stream"),
    ],
)
def test_what_does_not_go_with_stream(
    options: tuple[str, ...], message: str, pictures: Path, tmp_path: Path
) -> None:
    refused = run("predict", pictures, "-o", tmp_path / "out", *options)
    assert refused.exit_code == 2
    assert message in words(refused.stderr)


def test_frames_are_in_the_order_of_the_numbers_in_their_names() -> None:
    folders = {
        "a": ("b2.png", "b9.png", "b010x.png", "b10.png", "c1.png"),
        "b": ("12.597701.png", "12.6.png", "13.05.png", "13.1.png"),
        "c": ("frame-000002.jpg", "frame-000010.jpg", "frame-000010.png", "²3.jpg"),
    }
    ordered = [Path(folder) / name for folder, names in folders.items() for name in names]
    shuffled = sorted(ordered, key=lambda path: (path.parent.name, path.name[::-1]))
    assert frames_in_order(shuffled) == ordered

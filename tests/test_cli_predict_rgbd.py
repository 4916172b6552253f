"""``clipdepth predict --rgbd``: the RGB-D folder that ``clipdepth label`` writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.data import DataConfig
from clipdepth_plugin.data.formats.rgbd import RgbdFolder
from tests.test_cli_videos import TIMES, write_film
from tests.tiny.command_line import run, save_pictures, tiny_host, words

Given = tuple[Path, Path]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A host and a head with a canonical camera."""
    host, head = tiny_host(tmp_path_factory), tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    made = DepthHead.for_host(load_host(str(host)).model, preset="fast", canonical_focal=40.0)
    made.save_pretrained(head)
    return host, head


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    save_pictures(folder, {"a.png": (40, 60), "b.jpg": (33, 47), "odd name.bmp": (20, 20)})
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "a.png") as image:
        image.convert("RGB").save(folder / "turned.jpg", exif=turned)
        Image.new("RGB", (30, 20), (9, 9, 9)).save(folder / "plain.png")
    write_film(tmp_path / "film.mkv")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def predict(inputs: tuple[Path | str, ...], given: Given, out: Path, *more: str | Path) -> str:
    host, head = given
    options = ("--host", host, "--head", head, "-o", out / "maps", "--rgbd", out / "set")
    result = run("predict", *inputs, *options, *more)
    assert result.exit_code == 0, result.output
    return words(result.stderr)


def test_it_is_the_folder_of_label(given: Given, pics: Path, tmp_path: Path) -> None:
    cameras = tmp_path / "cameras.json"
    known = {"a": [50, 52, 30, 20], "b.jpg": [[40, 0, 23], [0, 40, 16], [0, 0, 1]]}
    unknown = dict.fromkeys([path.name for path in pics.iterdir() if path.stem not in "ab"])
    cameras.write_text(json.dumps({**known, **unknown, "film.mkv": [44, 44, 23, 16]}))
    host, head = given
    film = tmp_path / "film.mkv"
    said = predict((pics, film), given, tmp_path, "--intrinsics", cameras, "--batch-size", "3")
    assert "11 frames in the RGB-D folder" in said
    frames = {f"film.mkv/{index:06d}": [44, 44, 23, 16] for index in range(len(TIMES))}
    cameras.write_text(json.dumps({**known, **unknown, **frames}))
    command = ("label", pics, film, "--teacher", f"head:{head}@{host}", "-o", tmp_path / "labels")
    result = run(*command, "--no-flip", "--no-exif", "--intrinsics", cameras)
    assert result.exit_code == 0, result.output
    ours, theirs = files(tmp_path / "set"), files(tmp_path / "labels")
    metas = [json.loads(one.pop("meta.json")) for one in (ours, theirs)]
    assert ours == theirs
    assert [one["labels"].pop("settings")["flip"] for one in metas] == [False, False]
    assert metas[0]["labels"].pop("focal") == "of each picture, from the user's file, else unknown"
    assert "from the user's file, the data set, else" in metas[1]["labels"].pop("focal")
    assert metas[0] == metas[1]
    assert metas[0]["labels"]["source"] == f"head:{head}@{host}"


def test_it_is_read_as_data(given: Given, pics: Path, tmp_path: Path) -> None:
    predict((pics, tmp_path / "film.mkv"), given, tmp_path, "--npy", "--frames")
    data = RgbdFolder(DataConfig(format="rgbd", root=str(tmp_path / "set")))
    assert len(data) == 5 + len(TIMES)
    stored = {}
    for index in range(len(data)):
        sample = data[index]
        *_, sequence, frame = data.name(index).split("/")
        stored[f"{sequence}/{frame}"] = sample.depth_1HW[0].numpy()
        assert sample.intrinsics is None
    maps = tmp_path / "maps"
    for name, path in {
        "pics/a": maps / "a.npy",
        "pics/turned": maps / "turned.npy",
        "film.mkv/000003": maps / "film" / "000003.npy",
    }.items():
        np.testing.assert_allclose(stored[name], np.load(path), atol=2e-3)
    assert not np.nan_to_num(stored["pics/plain"]).any()


def test_straight_pictures_are_stored_and_distorted_ones_refused(
    given: Given, pics: Path, tmp_path: Path
) -> None:
    lens = {"intrinsics": [30, 30, 29.5, 19.5], "model": "radial", "distortion": [0.3]}
    (tmp_path / "camera.json").write_text(json.dumps(lens))
    host, head = given
    command = ("predict", pics / "a.png", "--host", host, "--head", head, "-o", tmp_path / "out")
    options = ("--rgbd", tmp_path / "set", "--intrinsics", tmp_path / "camera.json")
    result = run(*command, *options)
    assert result.exit_code == 1
    assert "--rgbd takes straight pictures: add --undistort" in words(result.stderr)
    assert run(*command, *options, "--undistort").exit_code == 0
    with (
        Image.open(tmp_path / "set" / "train" / "pics" / "a.png") as stored,
        Image.open(tmp_path / "out" / "a.undistorted.png") as straight,
    ):
        np.testing.assert_array_equal(np.asarray(stored), np.asarray(straight))
    cameras = json.loads((tmp_path / "set" / "train" / "pics" / "intrinsics.json").read_text())
    assert cameras == {"a": [30, 30, 29.5, 19.5]}
    (tmp_path / "camera.json").write_text(json.dumps({"intrinsics": lens["intrinsics"]}))
    result = run(*command, *options)
    assert result.exit_code == 2
    assert "undistort of the labels there is True, and now False" in words(result.stderr)


def test_folders_and_inputs_that_are_refused(given: Given, pics: Path, tmp_path: Path) -> None:
    host, head = given
    command = ("predict", pics, "--host", host, "--head", head, "-o", tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    other = tmp_path / "other" / "pics"
    other.parent.mkdir()
    save_pictures(other, {"c.png": (40, 60)})
    for more, message in (
        (("--rgbd", tmp_path / "taken"), "holds 'thesis.tex' and no meta.json"),
        (("--rgbd", tmp_path / "nowhere" / ".." / "out"), "is the folder of -o"),
        (("--rgbd", tmp_path / "set", other), "would both be the sequence pics"),
    ):
        result = run(*command, *more)
        assert result.exit_code == 2, result.output
        assert message in words(result.stderr)
        assert not list((tmp_path / "out").glob("*"))
    assert run(*command, "--rgbd", tmp_path / "set").exit_code == 0
    assert run(*command, "--rgbd", tmp_path / "set").exit_code == 0  # its own frames are replaced
    result = run(*command, "--rgbd", tmp_path / "set", "--focal-px", "50")
    assert "focal_px of the labels there is None, and now 50.0" in words(result.stderr)


def test_ctrl_c_leaves_a_folder_that_is_read(given: Given, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", list(range(0, 80_000, 40)), size=(16, 16))
    host, head = given
    given_host = ("--host", host, "--head", head, "--focal-px", "20")
    command = ("predict", film, *given_host, "-o", tmp_path / "out", "--rgbd", tmp_path / "set")
    with subprocess.Popen(
        [sys.executable, "-m", "clipdepth_plugin", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "first map" in line:
                break
        process.send_signal(signal.SIGINT)
        said = words(process.stderr.read())
    assert process.returncode == 1, said
    data = RgbdFolder(DataConfig(format="rgbd", root=str(tmp_path / "set"), with_camera=True))
    assert f"film.mkv: {len(data)} of 2000 frames" in said
    assert f"{len(data)} frames in the RGB-D folder" in said

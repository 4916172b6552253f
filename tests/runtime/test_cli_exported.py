"""``clipdepth predict --exported``: the files of predict, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipdepth_plugin import runtime
from tests.tiny.command_line import run, save_pictures, words
from tests.tiny.depth_png import read_depth_png

WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None\n"
    "from clipdepth_plugin.cli import main\n"
    "sys.argv[0] = 'clipdepth'; main()"
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    save_pictures(folder, {"a.png": (40, 60), "b.jpg": (33, 21)})
    return folder


def test_the_files_of_predict_where_torch_can_not_be_imported(
    metric: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "c.png").touch()
    output = tmp_path / "output"
    options = ("--exported", metric, "-o", output, "--npy", "--confidence", "--focal-px", "80")
    command = [sys.executable, "-c", WITHOUT_TORCH, "predict", *map(str, (pictures, *options))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "c.png: the file is empty" in words(ran.stderr)
    assert "s after the start" in ran.stderr
    kinds = ("depth.png", "colour.png", "npy", "confidence.png", "confidence.npy")
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{stem}.{kind}" for stem in "ab" for kind in kinds
    )
    result = runtime.open(metric)(pictures / "a.png", focal_px=80.0)
    np.testing.assert_array_equal(np.load(output / "a.npy"), result.depth)
    np.testing.assert_array_equal(np.load(output / "a.confidence.npy"), result.confidence)
    np.testing.assert_allclose(read_depth_png(output / "a.depth.png"), result.depth, atol=0.00051)


def test_relative_depth_under_names_of_its_own(
    relative: Path, pictures: Path, tmp_path: Path
) -> None:
    result = run("predict", pictures, "--exported", relative, "-o", tmp_path / "out", "--npy")
    assert result.exit_code == 0, result.output
    assert "relative depth, no metres" in words(result.stderr)
    found = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] == "a")
    assert found == ["a.colour.png", "a.inverse.npy", "a.inverse.png"]


@pytest.mark.parametrize("name", ["metric", "relative"])
def test_an_rgbd_folder_is_that_of_label(
    name: str, request: pytest.FixtureRequest, pictures: Path, tmp_path: Path
) -> None:
    exported, ours, theirs = request.getfixturevalue(name), tmp_path / "set", tmp_path / "labels"
    camera = ("--focal-px", "50")
    made = ("--exported", exported, "-o", tmp_path / "out", "--rgbd", ours)
    assert run("predict", pictures, *made, *camera).exit_code == 0
    labels = ("--teacher", f"onnx:{exported}/tower_depth.onnx", "-o", theirs, "--no-flip")
    assert run("label", pictures, *labels, "--no-exif", *camera).exit_code == 0
    suffix = "depth" if name == "metric" else "inverse"
    files = ("a.png", "b.jpg", f"a.{suffix}.png", f"b.{suffix}.png", "intrinsics.json")
    for file in files:
        path = Path("train") / "pictures" / file
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), file
    metas = [json.loads((one / "meta.json").read_text()) for one in (ours, theirs)]
    for meta in metas:
        del meta["labels"]["settings"]
    assert metas[0] == metas[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "demo"), "--host: does nothing with --exported"),
        (("--head", "demo", "--tower", "x"), "--head, --tower: does nothing with --exported"),
        (("--device", "abacus"), "provider 'abacus': there are cpu, cuda, tensorrt"),
        (("--device", "cuda:x"), "expected cpu, cuda, cuda:1 or tensorrt"),
        (("--confidence",), "predicts none"),
        (("--focal-px", "9"), "gives relative depth"),
    ],
)
def test_options_that_are_refused(
    options: tuple[str, ...], message: str, relative: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    result = run("predict", pictures, "--exported", relative, "-o", output, *options)
    assert result.exit_code == 2, result.output
    assert message in words(result.stderr)
    assert not output.exists()


def test_one_of_the_two_is_needed(pictures: Path, tmp_path: Path) -> None:
    result = run("predict", pictures, "--host", "config:vit-b-16", "-o", tmp_path / "output")
    assert result.exit_code == 2
    assert "--head is missing: give --host and --head, or --exported" in words(result.stderr)

"""``clipdepth calibrate``, run as a user runs it, on a tiny host, points and a set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.calibrating.report import Report
from tests.tiny.command_line import run, save_pictures, tiny_host, words


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_host(tmp_path_factory)


@pytest.fixture(scope="module")
def head(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    small = {"channels": (8, 8, 8), "film_hidden": 8, "confidence": True}
    made = DepthHead.for_host(load_host(str(host)).model, "fast", **small)  # type: ignore[arg-type]
    made.save_pretrained(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_points_make_a_new_head_and_a_report(host: Path, head: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path / "set", {f"{name}.png": (30, 40) for name in "abcde"})
    rows = [f"{name}.png,{x},9,{2.5 + 0.01 * x}" for name in "abcde" for x in (3, 20)]
    points = tmp_path / "set" / "points.csv"
    points.write_text("\n".join(["picture,x,y,metres", *rows]) + "\n")
    output, before = tmp_path / "new" / "head", hashes(head)
    options = ("--host", host, "--head", head, "--data", points, "-o", output)
    result = run("calibrate", *options)
    assert result.exit_code == 0, result.output
    assert hashes(head) == before
    assert "10 points in 5 pictures, 5 groups (pictures)" in words(result.stdout)
    assert "slope not fitted" in result.stdout
    assert "confidence not fitted: 10 points" in words(result.stdout)
    report = Report.model_validate_json((output / "report.json").read_text())
    assert report.better
    assert report.after is not None
    assert report.after.abs_rel < report.before.abs_rel
    assert report.pictures == tuple(f"{name}.png" for name in "abcde")
    made = DepthHead.from_pretrained(output)
    assert made.config.calibration == report.calibration
    assert report.calibration.data == "points.csv"
    card = (output / "README.md").read_text()
    assert "| Calibration | scale" in card
    assert "fitted to points.csv: 10 points of 2.53 to 2.7 m" in card

    written = hashes(output)
    result = run("calibrate", *options)
    assert result.exit_code == 2
    assert "no head is overwritten" in words(result.stderr)
    assert hashes(output) == written


def test_a_clip_is_calibrated_in_blocks(host: Path, head: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip" / "train" / "seq"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for frame in range(8):
        rgb = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{frame:04}.jpg")
        depth = random.integers(500, 4000, (12, 12)).astype(np.uint16)
        Image.fromarray(depth).save(folder / f"{frame:04}.depth.png")
    (tmp_path / "clip" / "meta.json").write_text(json.dumps({"depth_scale": 1000}))
    given = ("--host", host, "--head", head, "--data", f"rgbd:{tmp_path / 'clip'}")
    result = run("calibrate", *given, "-o", tmp_path / "new", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    assert "the pictures are of few sequences" in words(result.stderr)
    report = Report.model_validate_json((tmp_path / "new" / "report.json").read_text())
    assert report.grouping == "blocks of consecutive pictures"
    assert report.calibration.groups == 8
    assert report.no_confidence is None
    assert report.confidence_scale[1] > 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--slope", "always"), "do not determine the slope: 1 points"),
        (("--confidence", "always"), "do not determine the confidence: 1 points"),
        (("--data", "none.csv"), "expected FORMAT:ROOT"),
    ],
)
def test_mistakes_leave_nothing_behind(
    host: Path, head: Path, more: tuple[str, str], message: str, tmp_path: Path
) -> None:
    save_pictures(tmp_path / "set", {"a.png": (30, 40)})
    points = tmp_path / "set" / "points.csv"
    points.write_text("picture,x,y,metres\na.png,3,4,1.5\n")
    given = ("--host", host, "--head", head, "--data", points, "-o", tmp_path / "new")
    result = run("calibrate", *given, *more)
    assert result.exit_code == 2, result.output
    assert message in words(result.stderr)
    assert not (tmp_path / "new").exists()


def test_a_head_calibrated_on_another_tower_is_for_that_tower(
    host: Path, head: Path, tmp_path: Path
) -> None:
    other = DepthHead.from_pretrained(head)
    hashes = {"tower_hashes": {"float32": "0" * 64}}
    provenance = other.config.provenance.model_copy(update=hashes)
    other.config = other.config.model_copy(update={"provenance": provenance})
    other.save_pretrained(tmp_path / "other")
    save_pictures(tmp_path / "set", {"a.png": (30, 40)})
    points = tmp_path / "set" / "points.csv"
    points.write_text("picture,x,y,metres\na.png,3,4,1.5\n")
    given = ("calibrate", "--host", host, "--data", points)
    result = run(*given, "--head", tmp_path / "other", "-o", tmp_path / "new")
    assert result.exit_code == 2
    result = run(*given, "--head", tmp_path / "other", "-o", tmp_path / "new", "--other-tower")
    assert result.exit_code == 0, result.output
    assert "all points are of one picture" in result.stderr
    result = run(*given, "--head", tmp_path / "new", "-o", tmp_path / "newer")
    assert result.exit_code == 0, result.output

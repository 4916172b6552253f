"""Depth maps on disk: exact millimetres, whole files or none."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.files.colours import comparison, image_grid
from clipdepth_plugin.files.depth_maps import write_colour, write_depth_png, write_npy
from tests.tiny.depth_png import read_depth_png

DEPTH_HW = np.linspace(0.5, 8.0, 12 * 20, dtype=np.float32).reshape(12, 20)


@settings(max_examples=50, deadline=None)
@given(
    depth_HW=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(width=32)
    )
)
def test_png_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    depth_HW: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    path = tmp_path_factory.mktemp("png") / "map.depth.png"
    write_depth_png(path, depth_HW)
    read_HW = read_depth_png(path)
    assert read_HW.dtype == np.float32
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    np.testing.assert_array_equal(np.isfinite(read_HW), valid_HW)
    stored = np.clip(depth_HW[valid_HW].astype(np.float64), 0.001, 65.535)
    np.testing.assert_allclose(read_HW[valid_HW], stored, atol=0.000505)


def test_png_holds_16_bit_millimetres(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "map.png"
    depth_HW = torch.tensor([[1.2344, float("nan"), float("inf")], [-1.0, 70.0, 0.0]])
    with caplog.at_level(logging.WARNING):
        write_depth_png(path, depth_HW)
    with Image.open(path) as image:
        assert image.mode == "I;16"
        assert np.asarray(image).tolist() == [[1234, 0, 0], [0, 65535, 0]]
    assert "1 of 6 pixels" in caplog.text
    assert "--npy" in caplog.text


def test_npy_keeps_every_value(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    depth_HW = torch.tensor([[100.5, float("nan")]], dtype=torch.bfloat16)
    write_npy(path, depth_HW)
    np.testing.assert_array_equal(np.load(path), depth_HW.float().numpy())


@pytest.mark.parametrize(
    "depth_HW",
    [DEPTH_HW, np.full((4, 4), 2.0), np.full((1, 1), np.nan), np.ones((1, 300)), np.ones((300, 1))],
    ids=["ramp", "flat", "nothing", "wide", "tall"],
)
@pytest.mark.parametrize("with_image", [False, True])
def test_colour_picture_of_any_map(
    tmp_path: Path, depth_HW: np.ndarray[tuple[int, int], np.dtype[np.float64]], with_image: bool
) -> None:
    path = tmp_path / "map.colour.png"
    height, width = depth_HW.shape
    had_pyplot = "matplotlib.pyplot" in sys.modules
    image = Image.new("RGB", (width, height), "red") if with_image else None
    write_colour(path, depth_HW, image=image)
    with Image.open(path) as drawn:
        pixels_HWC = np.asarray(drawn.convert("RGB"))
    assert min(pixels_HWC.shape[:2]) >= 150
    assert bool((pixels_HWC == (255, 0, 0)).all(-1).any()) == with_image
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize("truth", ["none", "sparse", "flat"])
def test_a_grid_of_any_truth_and_prediction(truth: str) -> None:
    depth_HW = {"none": np.zeros((12, 20)), "flat": np.full((12, 20), 2.0)}.get(truth, DEPTH_HW)
    if truth == "sparse":
        depth_HW = np.where(np.arange(240).reshape(12, 20) % 40 == 5, DEPTH_HW, 0)
    pred_HW = np.where(DEPTH_HW < 1, np.nan, DEPTH_HW)
    picture_HWC = np.zeros((12, 20, 3), dtype=np.uint8)
    _, shown, _, error = row = comparison(picture_HWC, depth_HW, pred_HW, "a $name_{")
    points = np.isfinite(shown.shown).sum()
    assert points == {"none": 0, "flat": 240}.get(truth, points)
    assert (points > 2 * (depth_HW > 0).sum()) == (truth == "sparse")
    assert np.isfinite(error.shown).sum() <= points
    with Image.open(io.BytesIO(image_grid([row, row]))) as drawn:
        assert drawn.width > drawn.height > 400


@pytest.mark.parametrize("writer", [write_depth_png, write_npy, write_colour])
def test_a_batch_is_refused(tmp_path: Path, writer: Callable[[Path, torch.Tensor], None]) -> None:
    with pytest.raises(DepthFileError, match=r"shape \(H, W\), got \(1, 1, 4, 4\)"):
        writer(tmp_path / "map.png", torch.ones(1, 1, 4, 4))
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.png"
    write_depth_png(path, DEPTH_HW)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DepthFileError, match=r"map\.png: can't be written \(No space left"):
        write_depth_png(path, DEPTH_HW + 1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_npy(tmp_path / "map.npy", DEPTH_HW)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DepthFileError, match=r"nowhere.*can't be written"):
        write_npy(tmp_path / "nowhere" / "map.npy", DEPTH_HW)


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.touch()
    write_npy(tmp_path / "map.npy", DEPTH_HW)
    assert (tmp_path / "map.npy").stat().st_mode == reference.stat().st_mode

"""Cameras, focal lengths and ranges from files: checked as the API's, named by file and key."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from clipdepth_plugin.data import DataConfig, Sample, open_dataset
from clipdepth_plugin.data.files import DepthUnit
from clipdepth_plugin.data.stream import Record, StreamDataset
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.training.losses import LossConfig
from tests.training.data.conftest import DATE, Trees, _add, encoded

NORMALISED = [0.8, 1.1, 0.5, 0.5]
K4 = [[30, 0, 15, 0], [0, 31, 11, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

ODD_CAMERAS = [
    "x",
    "30 31 15 11",
    True,
    3,
    [],
    [30],
    [30, 31, 15, 11, 5],
    ["30", 31, 15, 11],
    [True, 31, 15, 11],
    [None, 31, 15, 11],
    [float("nan"), 31, 15, 11],
    [float("inf"), 31, 15, 11],
    [0, 31, 15, 11],
    [30, -31, 15, 11],
    [1e40, 1e40, 15, 11],
    {"fx": 30},
    K4,
    [[30, 0, 0], [0, 31, 0], [15, 11, 1]],
    NORMALISED,
]
"""None of them is a camera of the trees' pictures."""


def first(config: DataConfig) -> Sample:
    sample: Sample = next(iter(open_dataset(config)))
    return sample


def named(value: Any) -> str:
    return json.dumps(value)[:40]


@pytest.mark.parametrize("odd", ODD_CAMERAS, ids=named)
def test_cameras_of_files(trees: Trees, odd: Any) -> None:
    by_set = trees.rgbd("by-set", meta={"intrinsics": {"default": odd}})
    by_sequence = trees.rgbd("by-sequence", meta={"sequences": {"train/a": {"intrinsics": odd}}})
    by_frame = trees.rgbd("by-frame", cameras=True)
    frames = Path(by_frame.root) / "train" / "a" / "intrinsics.json"
    frames.write_text(json.dumps({**json.loads(frames.read_text()), "000": odd}))
    tar = trees.tar(shards=1)
    with tarfile.open(tar.root.replace("{00..00}", "00"), "w") as file:
        for name, data in zip(("png", "depth.png"), encoded(1), strict=True):
            _add(file, f"001.{name}", data)
        _add(file, "001.intrinsics.json", json.dumps(odd).encode())
    for config, where in (
        (by_set, "by-set/meta.json"),
        (by_sequence, "by-sequence/meta.json"),
        (by_frame, "by-frame/train/a/intrinsics.json"),
        (tar, "train-00/001: intrinsics"),
    ):
        with pytest.raises(DataError, match=f"(?s){re.escape(where)}.*(expected|no lens)"):
            first(config)


@pytest.mark.parametrize("odd", ODD_CAMERAS, ids=named)
def test_cameras_of_rows_and_configs(trees: Trees, odd: Any) -> None:
    stream: Any = open_dataset(trees.tar())
    assert isinstance(stream, StreamDataset)
    image, depth = encoded(1)
    for value in (odd, json.dumps(odd)):
        with pytest.raises(DataError, match=r"rows/train/00007: intrinsics"):
            stream.decode(Record("rows/train/00007", image, depth, value))
    with pytest.raises((ValidationError, DataError), match="intrinsics"):
        first(trees.rgbd(intrinsics=odd))


def test_a_camera_that_is_not_known(trees: Trees) -> None:
    stream: Any = open_dataset(trees.tar())
    image, depth = encoded(1)
    for value in (None, "null", b"null", '{"intrinsics": null}'):
        assert stream.decode(Record("row", image, depth, value)).intrinsics is None


@pytest.mark.parametrize(
    "odd", ["nan", "inf", "-5", "0", "1e400", "518.8px", "0.8", "4.25", "None", "1e-3", "f.png"]
)
def test_focal_lengths_of_lists(trees: Trees, odd: str) -> None:
    with pytest.raises(DataError, match=r"list\.txt:1: .*(focal|fx, fy)"):
        first(trees.nyu(focal=odd))


@pytest.mark.parametrize("odd", ["nan", "inf", "-5", "x", "0.8"])
@pytest.mark.parametrize("key", ["P_rect_02", "S_rect_02"])
def test_kitti_calibrations(trees: Trees, key: str, odd: str) -> None:
    config = trees.kitti()
    path = Path(config.root) / "raw" / DATE / "calib_cam_to_cam.txt"
    good = path.read_text()
    for line in (f"{key}: {odd} ", f"{key}: "):
        path.write_text(re.sub(rf"{key}: \S+ ?", line, good))
        if line != f"{key}: ":  # else a number fewer
            with pytest.raises(DataError, match=rf"calib_cam_to_cam.txt: {key}: "):
                first(config)
        else:
            with pytest.raises(DataError, match=r"calib_cam_to_cam.txt: "):
                first(config)


ODD_RANGES = ["1000", "10 m", True, None, [1], {}, 0, -1, float("nan"), float("inf"), 1e40, 1e-40]


@pytest.mark.parametrize("odd", ODD_RANGES, ids=repr)
def test_ranges(trees: Trees, odd: Any) -> None:
    for field in ("depth_scale", "max_depth_m"):
        if odd is not None or field == "depth_scale":
            with pytest.raises(DataError, match=rf"(?s)meta\.json.*{field}"):
                first(trees.rgbd(meta={field: odd}))
    if odd is not None:
        for field in ("depth_scale", "max_depth", "min_depth"):
            if (field, odd) != ("min_depth", 0):
                with pytest.raises(ValidationError, match=field):
                    trees.rgbd(**{field: odd})
    with pytest.raises(ValidationError, match="min_depth"):
        LossConfig(min_depth=odd)


def test_ranges_that_are_taken(trees: Trees) -> None:
    config = trees.rgbd(min_depth="1e-2", max_depth=np.float32(4), depth_scale=1000)  # YAML's 1e-2
    assert (config.min_depth, config.max_depth) == (0.01, 4.0)
    with pytest.raises(DataError, match=r"rooms: the nearest depth, 5\.0 m, is not below"):
        first(trees.rgbd(meta={"max_depth_m": 4}, min_depth=5))


def test_infinite_depth_is_no_depth() -> None:
    stored_HW = np.array([[1.0, np.inf, -np.inf, np.nan, 1e300]])
    metres = DepthUnit(1.0, 1e-3, float("inf")).metres(stored_HW)
    assert metres.tolist() == [[[1.0, 0.0, 0.0, 0.0, 0.0]]]


def test_an_unlikely_camera_is_said_once(trees: Trees, caplog: pytest.LogCaptureFixture) -> None:
    data = open_dataset(trees.rgbd(intrinsics=(60, 60, 31, 23)))  # of 48 x 64
    assert len(list(data)) == 6
    said = [record.message for record in caplog.records if "far from" in record.message]
    assert len(said) == 1
    assert said[0].startswith("rooms/train/a/000: intrinsics of its data set: a camera")

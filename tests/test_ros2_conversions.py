"""The messages of examples/ros2: the layouts of sensor_msgs, byte for byte."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.geometry import depth_to_points

_FILE = Path(__file__).parents[1] / "examples" / "ros2" / "conversions.py"


@pytest.fixture(scope="module")
def conversions() -> Any:
    spec = importlib.util.spec_from_file_location("ros2_conversions", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(encoding: str, rows: list[bytes], width: int) -> SimpleNamespace:
    return SimpleNamespace(
        encoding=encoding, height=len(rows), width=width, step=len(rows[0]), data=b"".join(rows)
    )


@pytest.mark.parametrize(
    ("encoding", "pixel", "seen"),
    [
        ("rgb8", b"\x01\x02\x03", [1, 2, 3]),
        ("bgr8", b"\x03\x02\x01", [1, 2, 3]),
        ("rgba8", b"\x01\x02\x03\xff", [1, 2, 3]),
        ("bgra8", b"\x03\x02\x01\xff", [1, 2, 3]),
        ("mono8", b"\x07", [7, 7, 7]),
        ("8UC3", b"\x03\x02\x01", [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_pictures(
    conversions: Any, encoding: str, pixel: bytes, seen: list[int], padding: int
) -> None:
    rows = [pixel * 4 + b"\xee" * padding] * 2
    picture = conversions.picture_of(image(encoding, rows, 4))
    assert picture.shape == (2, 4, 3)
    assert picture.dtype == np.uint8
    assert (picture == seen).all()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (image("16UC1", [b"\0\0"], 1), "encoding '16UC1'"),
        (image("rgb8", [b"\0\0"], 1), "step of 2"),
        (SimpleNamespace(**{**vars(image("rgb8", [b"\0" * 3], 1)), "data": b""}), "0 bytes"),
    ],
)
def test_what_is_no_picture(conversions: Any, message: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        conversions.picture_of(message)


def test_cameras(conversions: Any) -> None:
    info = SimpleNamespace(k=[500.0, 0, 319.5, 0, 510.0, 239.5, 0, 0, 1], height=480, width=640)
    assert conversions.intrinsics_of(info, (480, 640)) == (500.0, 510.0, 319.5, 239.5)
    with pytest.raises(ValueError, match="480 x 640, the image 240 x 320"):
        conversions.intrinsics_of(info, (240, 320))
    info.k = [0.0] * 9
    with pytest.raises(ValueError, match="not calibrated"):
        conversions.intrinsics_of(info, (480, 640))


def test_depth(conversions: Any) -> None:
    header = SimpleNamespace(stamp=7, frame_id="camera_optical")
    metres = np.array([[0.5, 1.0, np.nan], [2.0, 3.0, 4.0]], dtype=np.float64)
    message = conversions.fill_depth(SimpleNamespace(), metres, header)
    assert (message.height, message.width, message.step) == (2, 3, 12)
    assert (message.encoding, message.is_bigendian) == ("32FC1", 0)
    assert message.header is header
    told = struct.unpack("<6f", message.data)
    assert np.allclose(told, metres.ravel(), equal_nan=True)


def test_points(conversions: Any) -> None:
    header = SimpleNamespace(stamp=7, frame_id="camera_optical")
    metres = np.full((2, 4), 2.0, np.float32)
    metres[1, 3] = np.nan
    message = conversions.fill_points(
        SimpleNamespace(), metres, (10.0, 20.0, 2.0, 1.0), header, SimpleNamespace
    )
    assert [(one.name, one.offset, one.datatype, one.count) for one in message.fields] == [
        *[("x", 0, 7, 1), ("y", 4, 7, 1), ("z", 8, 7, 1)]
    ]
    assert (message.point_step, message.row_step, len(message.data)) == (12, 48, 96)
    assert (message.height, message.width) == (2, 4)
    assert message.is_dense is False
    assert message.is_bigendian is False
    assert message.header is header
    first = struct.unpack("<3f", message.data[:12])
    assert first == pytest.approx((-2 / 10 * 2, -1 / 20 * 2, 2.0))
    points = np.frombuffer(message.data, "<f4").reshape(2, 4, 3)
    ours = depth_to_points(torch.from_numpy(metres)[None], (10.0, 20.0, 2.0, 1.0))
    assert np.allclose(points, ours.numpy(), equal_nan=True)
    assert np.isnan(struct.unpack("<3f", message.data[-12:])).all()

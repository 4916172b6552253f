"""Cameras from files, and distorted pictures made straight, against OpenCV's formulas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.files.cameras import read_cameras
from clipdepth_plugin.files.surfaces import surface_of
from clipdepth_plugin.lenses import Lens
from clipdepth_plugin.maps.undistort import undistorted
from tests.tiny.room import BOX_SIZE, cast, colours, corner, fitted

K = [[300, 0, 159.5], [0, 310, 119.5], [0, 0, 1]]
CAMERA = (300.0, 310.0, 159.5, 119.5)
SIZE = (240, 320)
COLMAP = "# comment\n7 {} 320 240 {}\n"
ROS = """
image_width: 320
image_height: 240
camera_name: left
camera_matrix: {{rows: 3, cols: 3, data: [300, 0, 159.5, 0, 310, 119.5, 0, 0, 1]}}
distortion_model: {}
distortion_coefficients: {{rows: 1, cols: {}, data: {}}}
"""
TOPIC = """header: {stamp: {sec: 1}}
height: 240
width: 320
distortion_model: equidistant
d: [0.1, 0.01, 0.0, 0.0]
k: [300, 0, 159.5, 0, 310, 119.5, 0, 0, 1]
"""
ECHO = """header: {{seq: 12, stamp: {{secs: 1, nsecs: 5}}}}
height: 480
width: 640
distortion_model: "rational_polynomial"
D: [1, 2, 3, 4, 5, 6, 7, 1e-3]
K: [300.0, 0.0, {}, 0.0, 3.1e2, {}, 0.0, 0.0, 1.0]
binning_x: 2
roi: {{x_offset: {}, y_offset: {}, height: {}, width: {}, do_rectify: False}}
---
"""
EIGHT = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e-3)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", json.dumps(CAMERA), Lens(CAMERA)),
        ("a.json", json.dumps(K), Lens(CAMERA)),
        ("a.json", json.dumps({"photo": K, "other": None}), Lens(CAMERA)),
        ("a.json", json.dumps({"photo.jpg": K}), Lens(CAMERA)),
        ("a.json", json.dumps({"intrinsics": K, "size": SIZE}), Lens(CAMERA, SIZE)),
        (
            "a.json",
            json.dumps({"photo": {"intrinsics": K, "model": "fisheye", "distortion": [0.1]}}),
            Lens(CAMERA, None, "fisheye", (0.1,)),
        ),
        ("cameras.txt", COLMAP.format("PINHOLE", "300 310 160 120"), Lens(CAMERA, SIZE)),
        (
            "cameras.txt",
            COLMAP.format("SIMPLE_RADIAL", "300 160 120 -0.1"),
            Lens((300.0, 300.0, 159.5, 119.5), SIZE, "radial", (-0.1,)),
        ),
        (
            "cameras.txt",
            COLMAP.format("FULL_OPENCV", "300 310 160 120 1 2 3 4 5 6 7 8"),
            Lens(CAMERA, SIZE, "radial", tuple(map(float, range(1, 9)))),
        ),
        (
            "cameras.txt",
            COLMAP.format("OPENCV_FISHEYE", "300 310 160 120 1 2 3 4"),
            Lens(CAMERA, SIZE, "fisheye", (1.0, 2.0, 3.0, 4.0)),
        ),
        (
            "a.yaml",
            ROS.format("plumb_bob", 5, "[1, 2, 3, 4, 5]"),
            Lens(CAMERA, SIZE, "radial", (1.0, 2.0, 3.0, 4.0, 5.0)),
        ),
        ("a.yml", ROS.format("''", 0, "[]"), Lens(CAMERA, SIZE)),
        ("a.yml", TOPIC, Lens(CAMERA, SIZE, "fisheye", (0.1, 0.01, 0.0, 0.0))),
        # As rostopic echo writes it: documents that follow each other, arrays in capitals.
        (
            "a.yml",
            2 * ECHO.format(159.5, 119.5, 0, 0, 0, 0),
            Lens(CAMERA, (480, 640), "radial", EIGHT),
        ),
        ("a.yml", ECHO.format(259.5, 169.5, 100, 50, *SIZE), Lens(CAMERA, SIZE, "radial", EIGHT)),
        (
            "cameras.txt",
            "  " + COLMAP.format("OPENCV", "300 310 160 120 1 2 3 4").replace("\n", "\r\n"),
            Lens(CAMERA, SIZE, "radial", (1.0, 2.0, 3.0, 4.0)),
        ),
        (
            "cameras.txt",
            COLMAP.format("RADIAL", "300 160 120 0.1 -1e-2"),
            Lens((300.0, 300.0, 159.5, 119.5), SIZE, "radial", (0.1, -0.01)),
        ),
        (
            "cameras.txt",
            COLMAP.format("SIMPLE_RADIAL_FISHEYE", "300 160 120 0.1"),
            Lens((300.0, 300.0, 159.5, 119.5), SIZE, "fisheye", (0.1,)),
        ),
    ],
)
def test_files_of_every_kind(tmp_path: Path, name: str, content: str, expected: Lens) -> None:
    (tmp_path / name).write_text(content)
    found = read_cameras(tmp_path / name).of("photo.jpg")
    assert found is not None
    trimmed = found._replace(distortion=tuple(np.trim_zeros(found.distortion, "b")))
    assert trimmed == expected._replace(distortion=tuple(np.trim_zeros(expected.distortion, "b")))


def test_colmaps_pictures_have_cameras_of_their_own(tmp_path: Path) -> None:
    two = "1 SIMPLE_PINHOLE 320 240 300 160 120\n2 SIMPLE_PINHOLE 640 480 500 320 240\n"
    (tmp_path / "cameras.txt").write_text(two)
    with pytest.raises(DataError, match=r"images\.txt: no such file; .* 2 cameras"):
        read_cameras(tmp_path / "cameras.txt")
    (tmp_path / "images.txt").write_text(
        "# IMAGE_ID, ...\n1 1 0 0 0 0 0 0 2 left/a b.jpg\n1.5 2.5 -1\n2 1 0 0 0 0 0 0 1 c.jpg\n\n"
    )
    cameras = read_cameras(tmp_path / "cameras.txt")
    assert [cameras.of(name).size for name in ("a b.jpg", "c")] == [(480, 640), (240, 320)]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"has no camera of 'd'; it has 'left/a b\.jpg'"):
        cameras.of("d")


LEFT, RIGHT = [300, 300, 160, 120], [400, 400, 160, 120]


@pytest.mark.parametrize(
    ("names", "picture", "expected"),
    [
        ({"left/1.jpg": LEFT, "right/1.jpg": RIGHT}, "/data/right/1.jpg", RIGHT),
        ({"left/1.jpg": LEFT, "right/1.jpg": RIGHT}, "right/1", RIGHT),
        ({"left/1.jpg": LEFT, "right/1.jpg": RIGHT}, "pics/1.jpg", "may be 'left/1.jpg' or 'ri"),
        ({"left/1.jpg": LEFT, "right/1.jpg": LEFT}, "pics/1.png", LEFT),
        ({"1": LEFT, "right/1.jpg": RIGHT}, "right/1.jpg", RIGHT),
        ({"1.jpg": LEFT, "1.png": RIGHT}, "seq/1.png", RIGHT),
        ({"1.jpg": LEFT, "1.png": RIGHT}, "seq/1", "may be '1.jpg' or '1.png'"),
        ({"7": LEFT, "7.25": RIGHT}, "seq/7.25", RIGHT),
        ({"7": LEFT}, "seq/7.25", "has no camera of 'seq/7.25'"),
        ({"b.jpg": LEFT}, "pics/b", LEFT),
        ({"pics/b": None, "b": LEFT}, "pics/b", None),
        ({"film.mp4": LEFT}, "clips/film.mp4", LEFT),
    ],
)
def test_names_and_pictures(
    tmp_path: Path, names: dict[str, Any], picture: str, expected: list[int] | str | None
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(names))
    cameras = read_cameras(tmp_path / "a.json")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=re.escape(expected)):
            cameras.of(picture)
        return
    found = cameras.of(picture)
    assert (found and list(found.camera)) == expected
    assert cameras.has(picture)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "has no camera"),
        ("a.txt", COLMAP.format("FOV", "300 310 160 120 1"), "expected CAMERA_ID MODEL"),
        ("a.txt", COLMAP.format("PINHOLE", "300 310 160"), "6 finite"),
        ("a.txt", COLMAP.format("PINHOLE", "300 310 x 120"), "line 2: could not convert"),
        ("a.txt", COLMAP.format("PINHOLE", "-300 310 160 120"), "line 2"),
        ("a.json", "{}", "expected a camera"),
        ("a.json", "3", "expected a camera"),
        ("a.json", '{"a": 3}', "a: got 3, expected a camera"),
        ("a.json", '{"a": [1, 2, 3]}', r"a: a camera: got \[1, 2, 3\]"),
        ("a.json", '{"intrinsics": [1, 1, 1, 1], "model": "fov"}', "model"),
        ("a.json", '{"intrinsics": [1, 1, 1, 1], "distortion": [1]}', "needs a model"),
        ("a.json", '{"intrinsics": [1, 1, 1, 1], "size": [0, 4]}', "size"),
        ("a.yaml", "[1]", "no CameraInfo"),
        ("a.yaml", "{a: 1}", "has no camera_matrix"),
        ("a.yaml", ROS.format("thin_prism", 1, "[1]"), "distortion_model 'thin_prism'"),
        ("a.yaml", ROS.format("equidistant", 5, "[1, 2, 3, 4, 5]"), "4 at most"),
        ("a.yaml", ROS.format("plumb_bob", 1, "[x]"), "distortion_coefficients"),
        ("a.yaml", TOPIC.replace("300", "0"), r"^[^:]*a\.yaml: camera_matrix: got"),
        ("a.yaml", TOPIC + "roi: {x_offset: x}", "roi"),
        (
            "a.yaml",
            TOPIC.replace("[300, 0, 159.5, 0, 310, 119.5, 0, 0, 1]", "'123456789'"),
            "9 finite",
        ),
        ("a.xml", "<a/>", r"are read from \.json"),
        ("cameras.bin", "", "model_converter"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_cameras(tmp_path / name)


def test_a_camera_of_another_size_is_scaled_or_refused() -> None:
    lens = Lens(CAMERA, SIZE)
    assert lens.at((480, 640), "x").camera == (600.0, 620.0, 319.5, 239.5)
    for size in ((320, 240), (240, 240)):
        with pytest.raises(HostError, match=r"x: is of .* another shape"):
            lens.at(size, "x")
    assert Lens(CAMERA).at((10, 10), "x").camera == CAMERA


def rays_of(lens: Lens, size: tuple[int, int]) -> Any:
    """Rays of a distorted picture's pixels: OpenCV's formulas, turned round by iteration."""
    fx, fy, cx, cy = lens.camera
    x_HW, y_HW = np.meshgrid((np.arange(size[1]) - cx) / fx, (np.arange(size[0]) - cy) / fy)
    k1, k2, p1, p2 = lens.distortion
    x, y = x_HW, y_HW
    for _ in range(200):
        square = x * x + y * y
        if lens.model == "fisheye":
            t = np.arctan(np.sqrt(square))
            factor = t * (1 + k1 * t**2 + k2 * t**4 + p1 * t**6 + p2 * t**8) / np.sqrt(square)
            x, y = x_HW / factor, y_HW / factor
        else:
            factor = 1 + k1 * square + k2 * square**2
            x, y = (
                (x_HW - 2 * p1 * x * y - p2 * (square + 2 * x * x)) / factor,
                (y_HW - p1 * (square + 2 * y * y) - 2 * p2 * x * y) / factor,
            )
    return np.stack([x, y, np.ones(size)], -1)


LENSES = {
    "radial": Lens(
        (210.0, 205.0, 161.0, 118.0), (240, 320), "radial", (-0.25, 0.06, 0.001, -0.002)
    ),
    "fisheye": Lens((140.0, 140.0, 160.3, 119.9), (240, 320), "fisheye", (0.05, -0.01, 0.002, 0.0)),
}


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES.keys())
def test_a_distorted_picture_becomes_the_pinholes(lens: Lens) -> None:
    """Its true depth, made straight as a picture is, gives planes and lengths of the scene."""
    seen = cast(rays_of(lens, SIZE))
    straight_HW3, seen_HW = undistorted(colours(seen.plane_HW), lens)
    fx, fy, cx, cy = lens.camera
    x_HW, y_HW = np.meshgrid((np.arange(320) - cx) / fx, (np.arange(240) - cy) / fy)
    truth = cast(np.stack([x_HW, y_HW, np.ones(SIZE)], -1))
    same_HW = (straight_HW3 == colours(truth.plane_HW)).all(-1)
    assert seen_HW.mean() > 0.9
    assert same_HW[seen_HW].mean() > 0.97  # all but the borders, where colours blend
    assert (straight_HW3[~seen_HW] == 0).all()
    points = surface_of(truth.depth_HW, lens.camera, straight_HW3)
    planes = {}
    for plane in np.unique(truth.plane_HW):
        mine_HW = (straight_HW3 == colours(np.array([[plane]]))[0, 0]).all(-1) & points.keep_HW
        if mine_HW.sum() > 60:
            planes[plane] = fitted(points.points_HW3[mine_HW])
            assert planes[plane][2] < 0.005 * truth.depth_HW[mine_HW].mean()
    front, top, side, floor = planes[10], planes[8], planes[7], planes[3]
    length = np.linalg.norm(corner([front, top, side]) - corner([front, floor, side]))
    assert length == pytest.approx(BOX_SIZE[1], rel=0.005)


def test_beyond_the_fold_of_a_lens_nothing_is_shown() -> None:
    image_HW3 = np.full((240, 320, 3), 200, np.uint8)
    lens = Lens((150.0, 150.0, 159.5, 119.5), None, "radial", (-0.4,))  # turns back at 0.91
    straight_HW3, seen_HW = undistorted(image_HW3, lens)
    x_HW, y_HW = np.meshgrid((np.arange(320) - 159.5) / 150, (np.arange(240) - 119.5) / 150)
    off_HW = np.hypot(x_HW, y_HW)
    assert not seen_HW[off_HW > 0.92].any()
    assert seen_HW[off_HW < 0.90].all()
    assert straight_HW3[seen_HW].min() == 200

"""Point clouds and meshes against the truth: planes stay planes, lengths are right, edges sharp."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.files import colourise, save_glb, save_ply
from clipdepth_plugin.files.surfaces import surface_of
from tests.tiny.room import BOX_SIZE, cast, colours, corner, fitted, pinhole_rays

CAMERA = (260.0, 250.0, 165.0, 118.0)
SIZE = (240, 320)
SEEN = cast(pinhole_rays(CAMERA, SIZE))
PICTURE = colours(SEEN.plane_HW)


def read_ply(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a PLY file, by a reader of its own."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    count = int(re.search(rb"element vertex (\d+)", head)[1])  # type: ignore[index]
    kinds = {b"float": "<f4", b"uchar": "u1"}
    found = re.findall(rb"property (\w+) (\w+)", head)
    table = np.frombuffer(body, [(name.decode(), kinds[kind]) for kind, name in found])
    assert len(table) == count
    return {name: table[name] for name in table.dtype.names or ()}


def read_glb(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], Image.Image]:
    """The JSON, the arrays and the texture of a GLB file."""
    content = path.read_bytes()
    assert content[:8] == b"glTF\2\0\0\0"
    assert int.from_bytes(content[8:12], "little") == len(content)
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    body = content[20 + length + 8 :]
    blobs = [body[v["byteOffset"] :][: v["byteLength"]] for v in tree["bufferViews"]]
    primitive = tree["meshes"][0]["primitives"][0]
    arrays = {}
    for name, index in {**primitive["attributes"], "indices": primitive["indices"]}.items():
        accessor = tree["accessors"][index]
        kind = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        array = np.frombuffer(blobs[accessor["bufferView"]], kind).reshape(accessor["count"], -1)
        np.testing.assert_allclose(array.min(0), accessor["min"])
        np.testing.assert_allclose(array.max(0), accessor["max"])
        arrays[name] = array
    return tree, arrays, Image.open(io.BytesIO(blobs[tree["images"][0]["bufferView"]]))


def planes_of(points_N3: NDArray[Any], colours_N3: NDArray[Any]) -> dict[int, Any]:
    """The plane through the points of each colour, of those with many points."""
    found = {}
    for plane, colour in enumerate(colours(np.arange(12)[None])[0]):
        mine_N3 = points_N3[(colours_N3 == colour).all(1)].astype(np.float64)
        if len(mine_N3) > 300:
            found[plane] = fitted(mine_N3)
            assert found[plane][2] < 0.005 * mine_N3[:, 2].mean(), plane
    return found


def test_a_ply_of_true_depth_is_the_scene(tmp_path: Path) -> None:
    depth_1HW = torch.from_numpy(SEEN.depth_HW).float()[None]
    save_ply(tmp_path / "room.ply", depth_1HW, CAMERA, Image.fromarray(PICTURE))
    table = read_ply(tmp_path / "room.ply")
    points_N3 = np.stack([table[name] for name in "xyz"], 1)
    normals_N3 = np.stack([table[f"n{name}"] for name in "xyz"], 1)
    colours_N3 = np.stack([table[name] for name in ("red", "green", "blue")], 1)
    assert len(points_N3) > 0.97 * SEEN.depth_HW.size
    planes = planes_of(points_N3, colours_N3)
    assert len(planes) >= 6
    assert (np.sum(normals_N3 * points_N3, 1) < 0).all()  # towards the camera
    for plane, (normal, _, rms) in planes.items():
        mine_N3 = normals_N3[(colours_N3 == colours(np.array([[plane]]))[0, 0]).all(1)]
        assert np.median(np.abs(mine_N3 @ normal)) > 0.999
        assert rms < 1e-4
    # Corners of the box where its front (z low, 10) meets side, top and the room's floor.
    front, top, side, floor = planes[10], planes[8], planes[7], planes[3]
    upper, lower = corner([front, top, side]), corner([front, floor, side])
    assert np.linalg.norm(upper - lower) == pytest.approx(BOX_SIZE[1], rel=0.005)


def test_a_mesh_is_cut_at_depth_jumps(tmp_path: Path) -> None:
    save_glb(tmp_path / "room.glb", SEEN.depth_HW, CAMERA, PICTURE)
    tree, arrays, texture = read_glb(tmp_path / "room.glb")
    assert (texture.width, texture.height) == (320, 240)
    assert tree["asset"]["version"] == "2.0"
    places_N3 = arrays["POSITION"] * [1, -1, -1]
    corners_T33 = places_N3[arrays["indices"].reshape(-1, 3)]
    sides = np.linalg.norm(corners_T33 - np.roll(corners_T33, 1, axis=1), axis=-1)
    assert sides.max() < 0.2  # a triangle from the box to the wall behind would be metres long
    assert len(corners_T33) > 1.9 * 0.95 * SEEN.depth_HW.size
    # Front faces are counter-clockwise, and the texture shows the pixel that a vertex is of.
    a, b, c = (arrays["POSITION"][arrays["indices"].reshape(-1, 3)[:, k]] for k in range(3))
    assert (np.sum(np.cross(b - a, c - a) * (a + b + c), 1) < 0).all()
    columns_N, rows_N = (arrays["TEXCOORD_0"] * [320, 240] - 0.5).T
    expected_N3 = pinhole_rays(CAMERA, SIZE)[
        rows_N.round().astype(int), columns_N.round().astype(int)
    ]
    np.testing.assert_allclose(places_N3 / places_N3[:, 2:], expected_N3, atol=1e-5)


LENS = (300.0, 300.0, 29.5, 19.5)


def test_ramps_between_surfaces_and_unsure_pixels_are_left_out() -> None:
    depth_HW = np.full((40, 60), 2.0)
    depth_HW[:, 30:] = 1.0
    sharp = surface_of(depth_HW, LENS)
    assert sharp.keep_HW.all()
    smeared_HW = depth_HW.copy()
    smeared_HW[:, 27:33] = np.linspace(2, 1, 8)[1:-1]
    smeared = surface_of(smeared_HW, LENS)
    assert not smeared.keep_HW[:, 27:33].any()
    assert smeared.keep_HW[:, :26].all()
    assert smeared.keep_HW[:, 34:].all()
    sure_HW = np.full((40, 60), 0.3)
    sure_HW[5] = 0.1
    unsure = surface_of(depth_HW, LENS, confidence=sure_HW)
    assert not unsure.keep_HW[5].any()
    assert unsure.keep_HW.mean() == 39 / 40
    assert smeared.points_HW3[20, 5, 2] == 2.0


def test_a_floor_is_kept_into_the_distance() -> None:
    rows_H = (np.arange(200) - 99.5) / 200
    depth_H = np.where(rows_H > 0.05, 1.5 / np.maximum(rows_H, 1e-9), np.nan)  # 1.5 m below
    kept = surface_of(np.repeat(depth_H[:, None], 50, 1), (200.0, 200.0, 24.5, 99.5)).keep_HW
    assert kept[rows_H > 0.1].all()
    assert not kept[rows_H < 0.05].any()


def test_large_maps_are_thinned_out(tmp_path: Path) -> None:
    save_ply(tmp_path / "a.ply", SEEN.depth_HW, CAMERA, PICTURE, max_points=5000)
    save_glb(tmp_path / "a.glb", SEEN.depth_HW, CAMERA, PICTURE, max_points=5000)
    assert 4000 < len(read_ply(tmp_path / "a.ply")["x"]) <= 5000
    _, arrays, texture = read_glb(tmp_path / "a.glb")
    assert 3500 < len(arrays["POSITION"]) <= 5000
    assert texture.width == 320
    columns_N, rows_N = (arrays["TEXCOORD_0"] * [320, 240] - 0.5).T
    assert set(np.unique(columns_N.round()) % 4) == {0}
    assert set(np.unique(rows_N.round()) % 4) == {0}


GOOD = np.ones((4, 5))


@pytest.mark.parametrize(
    ("depth", "camera", "image", "message"),
    [
        (np.ones((2, 4, 5)), CAMERA, None, r"shape \(H, W\)"),
        (np.full((4, 5), np.nan), (5.0, 5.0, 2.0, 2.0), None, "no valid depth"),
        (np.ones((4, 5), bool), CAMERA, None, "expected a depth map"),
        ([[1.0]], CAMERA, None, "expected a depth map"),
        (GOOD, (0.5, 0.5, 0.5, 0.5), None, "normalised"),
        (GOOD, (5.0, 5.0, 2.0), None, "intrinsics"),
        (GOOD, (5.0, 5.0, 2.0, 2.0), np.zeros((5, 4, 3), np.uint8), "of one size"),
        (GOOD, (5.0, 5.0, 2.0, 2.0), np.zeros((4, 5, 4), np.uint8), "expected a picture"),
        (GOOD, (5.0, 5.0, 2.0, 2.0), "photo.jpg", "expected a picture"),
    ],
)
@pytest.mark.parametrize("save", [save_ply, save_glb])
def test_what_does_not_fit_is_refused(
    tmp_path: Path, save: Any, depth: Any, camera: Any, image: Any, message: str
) -> None:
    with pytest.raises(ClipDepthError, match=message):
        save(tmp_path / "x", depth, camera, image)
    assert not list(tmp_path.iterdir())


def test_colourise_is_matplotlibs_turbo() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    depth_HW = np.linspace(1, 3, 256)[None]
    colours_HW3 = colourise(torch.from_numpy(depth_HW)[None], 1.0, 3.0)
    expected_HW3 = matplotlib.colormaps["turbo_r"](np.arange(256))[None, :, :3] * 255
    assert np.abs(colours_HW3 - expected_HW3).max() < 5
    np.testing.assert_array_equal(colourise(depth_HW, 1, 3, inverse=True), colours_HW3[:, ::-1])
    assert (colourise(np.array([[np.nan, 0.0, -1.0, 2.0]]))[0, :3] == 128).all()
    with pytest.raises(ClipDepthError, match="low is not below"):
        colourise(depth_HW, 3, 1)

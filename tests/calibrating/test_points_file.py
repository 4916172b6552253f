"""A CSV file of measured points as a set, and its wrong rows by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdepth_plugin.data.points import PointsFile
from clipdepth_plugin.errors import DataError
from tests.tiny.command_line import save_pictures

HEADER = "picture,x,y,metres,focal_px"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "clip", {"a.png": (20, 30), "b c.jpg": (10, 10)})
    return tmp_path


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "points.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_points_are_samples_with_sparse_depth(folder: Path) -> None:
    rows = ["clip/a.png,0,0,1.5,40", "clip/b c.jpg, 9.49, -0.5, 2e0,", "clip/a.png,29,19,0.25,40"]
    data = PointsFile(written(folder, *rows, ""))
    assert [data.name(index) for index in range(len(data))] == ["clip/a.png", "clip/b c.jpg"]
    first, second = data
    assert first.image_3HW.shape == (3, 20, 30)
    assert first.depth_1HW[0].nonzero().tolist() == [[0, 0], [19, 29]]
    assert first.depth_1HW[0, 19, 29] == 0.25
    assert first.intrinsics == (40.0, 40.0, 14.5, 9.5)
    assert second.depth_1HW[0].nonzero().tolist() == [[0, 9]]
    assert second.intrinsics is None
    assert data.line(0, 19, 29) == 4


def test_pictures_are_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    rgb.save(folder / "turned.jpg", exif=exif)
    data = PointsFile(written(folder, "turned.jpg,19,29,1,"))
    assert data[0].image_3HW.shape == (3, 30, 20)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("clip/a.png,30,3,1,", "line 3: x, y: 30, 3 is outside of the picture, 30 wide and 20"),
        ("clip/a.png,3,19.5,1,", "line 3: x, y: 3, 19.5 is outside"),
        ("clip/a.png,-1,3,1,", "line 3: .*outside"),
        ("clip/a.png,1e300,3,1,", "line 3: .*outside"),
        ("clip/a.png,3,3,0,", "line 3: metres: got 0.0, expected a finite number above 0"),
        ("clip/a.png,3,3,-1,", "line 3: metres: got -1.0"),
        ("clip/a.png,3,3,5e-4,", "line 3: metres: 5e-4 is less than 0.001"),
        ("clip/a.png,3,3,nan,", "line 3: metres: got 'nan', expected a finite number"),
        ("clip/a.png,inf,3,1,", "line 3: x: got 'inf'"),
        ("clip/a.png,3,,1,", "line 3: y: got ''"),
        ("clip/a.png,3,3,1 m,", "line 3: metres: got '1 m'"),
        ("clip/a.png,2,2,3,", "line 3: the same pixel of 'clip/a.png' as on line 2"),
        ("clip/a.png,2.2,1.9,3,", "line 3: the same pixel"),
        ("./clip//../clip/a.png,2,2,3,", "line 3: the same pixel"),
        ("clip/a.png,3,3,1,40", "line 3: focal_px: 40, but empty on line 2 of the same picture"),
        ("clip/b c.jpg,3,3,1,-4", "line 3: focal_px: got -4.0"),
        ("clip/b c.jpg,3,3,1,1e-6", "line 3: focal_px"),
        ("clip/none.png,3,3,1,", r"line 3: .*none.png: no such file"),
        ("clip,3,3,1,", "line 3: .*clip: is a folder"),
        ("points.csv,3,3,1,", "line 3: .*points.csv: is a text file"),
        (",3,3,1,", "line 3: picture: is empty"),
        ("clip/a.png,3,3,1", "line 3: has another number of columns than the header"),
        ("clip/a.png,3,3,1,,", "line 3: has another number of columns"),
        ('"clip/a.png,3,3,1,', "line 3: has another number of columns"),
    ],
)
def test_wrong_rows_are_named(folder: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        PointsFile(written(folder, "clip/a.png,2,2,1,", row))
    assert "1 rows are wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("picture,x,y", [], "points.csv:1: expected a header picture,x,y,metres"),
        ("picture,x,y,metres,z", [], "got 'picture,x,y,metres,z'"),
        ("picture,x,y,metres,x", [], "expected a header"),
        ("clip/a.png,1,1,1", [], "expected a header"),
        ("", [], "expected a header"),
        (HEADER, [], "holds no point"),
        (HEADER, ["clip/a.png,99,3,1,"] * 20, "20 rows are wrong(.*\n)*  and 10 more"),
    ],
)
def test_wrong_files_are_refused(folder: Path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PointsFile(written(folder, *rows, header=header))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00\xd8")
    for path in ("points.csv", "none.csv", "."):
        with pytest.raises(DataError, match=r"points.csv|none.csv|folder"):
            PointsFile(tmp_path / path)

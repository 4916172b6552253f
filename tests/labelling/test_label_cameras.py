"""Cameras: who is asked first, what EXIF can be trusted with, and that none is made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.exif import exif_focal
from clipdepth_plugin.labelling.cameras import Cameras
from clipdepth_plugin.labelling.pictures import Content
from clipdepth_plugin.labelling.settings import LabelSettings

Tag = ExifTags.Base
SIZE = (4000, 3000)
DIAGONAL = math.hypot(36, 24)
TAKEN = {Tag.ExifImageWidth: 4000, Tag.ExifImageHeight: 3000}
PLANE = {Tag.FocalLength: 5.0, Tag.FocalPlaneXResolution: 6096.0 * 2.54 / 2.54, **TAKEN}
PLANE_PX = 5.0 * 6096.0 / 25.4
FILM = {Tag.FocalLengthIn35mmFilm: 26, **TAKEN}
FILM_PX = 26 / DIAGONAL * 5000


@pytest.mark.parametrize(
    ("tags", "size", "focal"),
    [
        ({}, SIZE, None),
        (FILM, SIZE, FILM_PX),
        (FILM, (3000, 4000), FILM_PX),
        (FILM, (2000, 1500), FILM_PX / 2),
        (FILM, (3000, 3000), None),  # cropped
        (FILM, (4000, 2250), None),
        ({Tag.FocalLengthIn35mmFilm: 26}, SIZE, FILM_PX),
        ({Tag.FocalLengthIn35mmFilm: 0, **TAKEN}, SIZE, None),
        (PLANE, SIZE, PLANE_PX),
        (PLANE, (1000, 750), PLANE_PX / 4),
        ({**PLANE, Tag.FocalPlaneResolutionUnit: 3}, SIZE, 5.0 * 6096.0 / 10),
        ({**PLANE, Tag.FocalPlaneResolutionUnit: 1}, SIZE, None),  # no unit
        ({**PLANE, Tag.DigitalZoomRatio: 2.0}, SIZE, None),
        ({**PLANE, Tag.FocalLength: 0.0}, SIZE, None),
        ({**PLANE, Tag.FocalLengthIn35mmFilm: 10}, SIZE, PLANE_PX),  # 1156: 4% apart
        ({**PLANE, Tag.FocalLengthIn35mmFilm: 26}, SIZE, None),  # which one is wrong?
        ({Tag.FocalLength: 5.0, **TAKEN}, SIZE, None),
    ],
)
def test_exif(
    tmp_path: Path, tags: dict[Any, Any], size: tuple[int, int], focal: float | None
) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    Image.new("L", (1, 1)).save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        found = exif_focal(image.getexif(), size)
    assert found is None if focal is None else found == pytest.approx(focal, rel=1e-4)


OWN, FILE = (10.0, 11.0, 7.5, 5.5), (12.0, 12.0, 7.0, 5.0)
CENTRED = (20.0, 20.0, 7.5, 5.5)


@pytest.mark.parametrize(
    ("settings", "camera", "exif", "expected"),
    [
        ({}, None, None, None),
        ({}, None, 20.0, CENTRED),
        ({}, OWN, 20.0, OWN),
        ({"exif": False}, None, 20.0, None),
        ({"focal_px": 20}, OWN, 30.0, CENTRED),
        ({"intrinsics": FILE}, OWN, 20.0, FILE),
        ({"intrinsics_file": {"s/x": FILE}}, OWN, 20.0, FILE),
        ({"intrinsics_file": {"s/x": None}}, OWN, 20.0, None),
        ({"intrinsics_file": {"s/y": FILE}}, OWN, 20.0, OWN),
        ({}, None, 1e-6, None),  # of no lens
    ],
)
def test_who_is_asked_first(
    tmp_path: Path, settings: dict[str, Any], camera: Any, exif: float | None, expected: Any
) -> None:
    if "intrinsics_file" in settings:
        path = tmp_path / "cameras.json"
        path.write_text(json.dumps(settings["intrinsics_file"]))
        settings = {"intrinsics_file": str(path)}
    cameras = Cameras(LabelSettings(**settings))
    content = Content(np.zeros((12, 16, 3), np.uint8), camera=camera, exif_focal=exif)
    assert cameras("s/x", content) == expected


def test_a_given_camera_of_no_lens_is_an_error() -> None:
    content = Content(np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(DataError, match="s/x: intrinsics: a camera"):
        Cameras(LabelSettings(focal_px=1e-3))("s/x", content)


@pytest.mark.parametrize("text", ["[]", '{"a": 3}', '{"a": [1, 2]}', "x"])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "cameras.json").write_text(text)
    with pytest.raises(DataError, match=r"cameras\.json"):
        Cameras(LabelSettings(intrinsics_file=str(tmp_path / "cameras.json")))

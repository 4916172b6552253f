"""Cameras from files: JSON, COLMAP's cameras.txt, ROS's CameraInfo (YAML).

A file has one camera for all pictures, or one for each name (``camera_names.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clipdepth_plugin.arguments import Size, parse_camera, parse_numbers, parse_size
from clipdepth_plugin.errors import DataError, HostError, printable, quoted
from clipdepth_plugin.files.camera_names import CameraFile
from clipdepth_plugin.files.documents import MIB, read_json, read_yaml
from clipdepth_plugin.files.paths import read_text
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.lenses import Lens
from clipdepth_plugin.settings import GivenCamera, Settings

_JSON_BYTES = 256 * MIB  # a camera for each of some million frames
_MODELS: dict[str, Literal["radial", "fisheye"]] = {
    "": "radial",
    "plumb_bob": "radial",
    "rational_polynomial": "radial",
    "equidistant": "fisheye",
    "fisheye": "fisheye",
}
"""ROS's names of models; the empty one goes with no distortion."""
_COLMAP: dict[str, tuple[Literal["radial", "fisheye"], str]] = {
    "SIMPLE_PINHOLE": ("radial", "f cx cy"),
    "PINHOLE": ("radial", "fx fy cx cy"),
    "SIMPLE_RADIAL": ("radial", "f cx cy k1"),
    "RADIAL": ("radial", "f cx cy k1 k2"),
    "OPENCV": ("radial", "fx fy cx cy k1 k2 p1 p2"),
    "FULL_OPENCV": ("radial", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", "f cx cy k1"),
    "RADIAL_FISHEYE": ("fisheye", "f cx cy k1 k2"),
    "OPENCV_FISHEYE": ("fisheye", "fx fy cx cy k1 k2 k3 k4"),
}
_ORDER = {
    "radial": ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"],
    "fisheye": ["k1", "k2", "k3", "k4"],
}
_EXPECTED = (
    "a camera [fx, fy, cx, cy], a 3x3 matrix, {intrinsics, size, model, distortion}, or names with "
    "one of them (or null) each"
)


class _GivenLens(Settings):
    """A camera of a JSON file with more than four numbers."""

    intrinsics: GivenCamera
    size: tuple[int, int] | None = None
    model: Literal["pinhole", "radial", "fisheye"] = "pinhole"
    distortion: tuple[float, ...] = Field(default=(), max_length=8)

    def lens(self, where: str) -> Lens:
        """The lens; ``where`` begins the message."""
        if self.model == "pinhole" and any(self.distortion):
            raise DataError(f"{where}: distortion needs a model, radial or fisheye")
        size = None if self.size is None else parse_size(self.size, f"{where}: size")
        model: Literal["radial", "fisheye"] = "fisheye" if self.model == "fisheye" else "radial"
        return _lens(self.intrinsics, size, model, self.distortion, where)


def read_cameras(path: Path) -> CameraFile:
    """Reads a file of cameras, by its suffix: .json, .txt (COLMAP), .yaml or .yml (ROS).

    Raises:
        DataError: It can't be read, is of another format, or has another model of lenses.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{printable(path)}: cameras are read from {', '.join(_READERS)}: JSON, COLMAP's "
            "cameras.txt (of a binary model, colmap model_converter --output_type TXT writes it), "
            "ROS's CameraInfo"
        )
    try:
        return reader(path)
    except HostError as error:
        raise DataError(str(error)) from error


def _json(path: Path) -> CameraFile:
    tree = read_json(path, DataError, limit=_JSON_BYTES)
    where = printable(path)
    if isinstance(tree, list) or (isinstance(tree, dict) and "intrinsics" in tree):
        return CameraFile(path, _one(tree, where), {})
    if not isinstance(tree, dict) or not tree:
        raise DataError(f"{where}: got {quoted(tree)}, expected {_EXPECTED}")
    by_name = {
        name: None if one is None else _one(one, f"{where}: {printable(name)}")
        for name, one in tree.items()
    }
    return CameraFile(path, None, by_name)


def _one(tree: Any, where: str) -> Lens:
    if isinstance(tree, dict):
        return checked(_GivenLens, tree, where, DataError).lens(where)
    if isinstance(tree, list):
        try:
            return Lens(parse_camera(tree, "a camera"))
        except HostError as error:
            raise DataError(f"{where}: {error}") from error
    raise DataError(f"{where}: got {quoted(tree)}, expected {_EXPECTED}")


def _colmap(path: Path) -> CameraFile:
    lenses: dict[str, Lens] = {}
    for number, line in _lines(path):
        where, fields = f"{printable(path)}, line {number}", line.split()
        if len(fields) < 5 or fields[1] not in _COLMAP:
            raise DataError(
                f"{where}: got {quoted(line)}, expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS... "
                f"with a MODEL of {', '.join(_COLMAP)}"
            )
        model, names = _COLMAP[fields[1]]
        values = _floats(fields[2:], 2 + len(names.split()), where)
        size = parse_size((values[1], values[0]), where)
        given = dict(zip(names.split(), values[2:], strict=True))
        fx, fy = given.get("fx", given.get("f")), given.get("fy", given.get("f"))
        # COLMAP's origin is the corner of the first pixel, ours its middle.
        camera = parse_camera((fx, fy, given["cx"] - 0.5, given["cy"] - 0.5), where)
        distortion = tuple(given.get(name, 0.0) for name in _ORDER[model])
        lenses[fields[0]] = _lens(camera, size, model, distortion, where)
    if not lenses:
        raise DataError(f"{printable(path)}: has no camera in it")
    if len(lenses) == 1:
        return CameraFile(path, next(iter(lenses.values())), {})
    return CameraFile(path, None, _of_pictures(path, lenses))


def _of_pictures(path: Path, lenses: Mapping[str, Lens]) -> dict[str, Lens | None]:
    """Names of pictures -> cameras, from COLMAP's images.txt: every second line has a picture."""
    images = path.with_name("images.txt")
    absent = (
        f"no such file; {printable(path)} has {len(lenses)} cameras, and COLMAP's images.txt "
        "beside it says which picture has which"
    )
    lines = read_text(images, DataError, absent).splitlines()
    names: dict[str, Lens | None] = {}
    rows = [line for line in lines if not line.startswith("#")]
    for row in rows[::2]:
        fields = row.split(maxsplit=9)
        if len(fields) != 10 or fields[8] not in lenses:
            raise DataError(
                f"{printable(images)}: got {quoted(row)}, expected IMAGE_ID QW QX QY QZ TX TY TZ "
                "CAMERA_ID NAME"
            )
        names[fields[9]] = lenses[fields[8]]
    return names


def _ros(path: Path) -> CameraFile:
    tree, where = read_yaml(path, DataError, stream=True), printable(path)  # a message each
    if not isinstance(tree, dict):
        raise DataError(f"{where}: is no CameraInfo of ROS")
    matrix = _first(tree, ("camera_matrix", "k", "K"), where)
    fx, skew, cx, zero, fy, cy, *last = _floats(matrix, 9, f"{where}: camera_matrix")
    model = _first(tree, ("distortion_model",), where)
    given = _first(tree, ("distortion_coefficients", "d", "D"), where)
    if model not in _MODELS or not isinstance(given, list):
        raise DataError(
            f"{where}: distortion_model {quoted(model)}, distortion_coefficients {quoted(given)}: "
            f"expected one of {', '.join(filter(None, _MODELS))}, and a list"
        )
    distortion = tuple(_floats(given, len(given), f"{where}: distortion_coefficients"))
    size, (left, top) = _ros_window(tree, where)
    rows = [[fx, skew, cx - left], [zero, fy, cy - top], last]
    camera = parse_camera(rows, f"{where}: camera_matrix")
    return CameraFile(path, _lens(camera, size, _MODELS[model], distortion, where), {})


def _ros_window(tree: Mapping[Any, Any], where: str) -> tuple[Size, tuple[int, int]]:
    """Size of the pictures, and where they begin (x, y): a region of interest is cut out."""
    width = _first(tree, ("image_width", "width"), where)
    height = _first(tree, ("image_height", "height"), where)
    whole = parse_size((height, width), f"{where}: image_height, image_width")
    roi = tree.get("roi")
    if not isinstance(roi, dict):
        return whole, (0, 0)
    names = ("height", "width", "y_offset", "x_offset")
    rows, columns, top, left = (
        int(one) for one in parse_numbers([roi.get(name, 0) for name in names], 4, f"{where}: roi")
    )
    return (rows or whole[0], columns or whole[1]), (left, top)


def _first(tree: Mapping[Any, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in tree:
            value = tree[name]
            return value.get("data") if isinstance(value, dict) else value
    raise DataError(f"{where}: has no {names[0]}, as CameraInfo of ROS has")


def _lens(
    camera: Any,
    size: Size | None,
    model: Literal["radial", "fisheye"],
    distortion: tuple[float, ...],
    where: str,
) -> Lens:
    most = len(_ORDER[model])
    if len(distortion) > most:
        if any(distortion[most:]):
            raise DataError(
                f"{where}: {len(distortion)} numbers of distortion, and {model} lenses have "
                f"{most} at most"
            )
        distortion = distortion[:most]
    return Lens(camera, size, model, distortion)


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(read_text(path, DataError).splitlines(), 1)
    return [(number, line) for number, line in lines if line.strip()[:1] not in ("", "#")]


def _floats(fields: Any, count: int, where: str) -> list[float]:
    """Numbers, also as text: to YAML 1.1 ``1e-5`` is a text."""
    try:
        values = [float(one) for one in fields] if isinstance(fields, list) else fields
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    return parse_numbers(values, count, where)


_READERS: dict[str, Callable[[Path], CameraFile]] = {
    ".json": _json,
    ".txt": _colmap,
    ".yaml": _ros,
    ".yml": _ros,
}

"""KITTI by a list, over raw drives and annotated depth; cameras from its calibration files."""

from __future__ import annotations

import logging
import re
from functools import cached_property
from pathlib import Path

from clipdepth_plugin.arguments import Intrinsics, Size, parse_camera, parse_size
from clipdepth_plugin.data.config import register_format
from clipdepth_plugin.data.listed import FIELDS, Line, ListedSet
from clipdepth_plugin.data.sample import rescaled
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.lenses import LensCheck, centred

logger = logging.getLogger(__name__)

_CAMERA = re.compile(r"image_(\d\d)")

_Calibration = dict[str, tuple[Intrinsics, Size]]
"""Number of a rectified camera -> the camera, and (H, W) of its pictures."""


@register_format("kitti", reads=FIELDS, needs={"files"})
class KittiList(ListedSet):
    """The listed frames."""

    depth_scale = 256.0
    max_depth = 80.0
    # KITTI's depth archive unpacks into train and val; lists name what is inside.
    depth_folders = ("", "train", "val")

    def camera(self, line: Line, size: tuple[int, int]) -> Intrinsics | None:
        """See ``ListedSet``.

        Where there is no calibration file, the list's focal length and the picture's middle stand
        in; a warning says so, once for each date.
        """
        date, found = line.image.partition("/")[0], _CAMERA.search(line.image)
        path = self.images / date / "calib_cam_to_cam.txt"
        if date not in self._calibrations:
            self._calibrations[date] = _read_calibration(path)
        calibration = self._calibrations[date]
        if calibration is None or found is None:
            return None if line.focal is None else centred(line.focal, size)
        if found[1] not in calibration:
            raise DataError(
                f"{path}: no rectified camera {found[1]} ({', '.join(_keys(found[1]))}); "
                f"get KITTI's calibration of {date} again"
            )
        return rescaled(*calibration[found[1]], size)

    @cached_property
    def _calibrations(self) -> dict[str, _Calibration | None]:
        """Date -> its calibration file, None where there is none."""
        return {}


def _read_calibration(path: Path) -> _Calibration | None:
    if path.exists():
        check_file(path, DataError)  # a pipe would be waited for
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        logger.warning(
            "%s: no such file; focal lengths are the list's, the principal point is taken to be "
            "the picture's middle. KITTI's calibration archive of that date has it",
            path,
        )
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    values = {key: text.split() for key, text in pairs if key.startswith(("P_rect_", "S_rect_"))}
    numbers = {key.rpartition("_")[2] for key in values}
    try:
        return {
            number: _rectified(values, number, path)
            for number in sorted(numbers)
            if values.keys() >= {*_keys(number)}
        }
    except HostError as error:
        raise DataError(f"{error}; get KITTI's calibration of that date again") from error


def _rectified(values: dict[str, list[str]], number: str, path: Path) -> tuple[Intrinsics, Size]:
    """P is the 3 x 4 projection matrix by rows, S is (width, height)."""
    p, s = (_numbers(values[key], f"{path}: {key}") for key in _keys(number))
    name, size_name = (f"{path}: {key}" for key in _keys(number))
    size = parse_size(s[::-1], size_name)
    camera = parse_camera([p[0:3], p[4:7], p[8:11]], name)
    LensCheck()(camera, size, name)
    return camera, size


def _keys(number: str) -> tuple[str, str]:
    return f"P_rect_{number}", f"S_rect_{number}"


def _numbers(words: list[str], name: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise HostError(f"{name}: {error}") from error

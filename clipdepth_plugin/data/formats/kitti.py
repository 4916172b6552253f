"""KITTI by a list, over raw drives and annotated depth; cameras from its calibration files."""

from __future__ import annotations

import logging
import re
from functools import cached_property
from pathlib import Path

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.config import register_format
from clipdepth_plugin.data.listed import FIELDS, Line, ListedSet
from clipdepth_plugin.data.sample import rescaled
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.paths import check_file

logger = logging.getLogger(__name__)

_CAMERA = re.compile(r"image_(\d\d)")

_Calibration = dict[str, list[float]]


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
            middle = ((size[1] - 1) / 2, (size[0] - 1) / 2)
            return None if line.focal is None else (line.focal, line.focal, *middle)
        try:
            fx, _, cx, _, _, fy, cy, *_ = calibration[f"P_rect_{found[1]}"]
            width, height = calibration[f"S_rect_{found[1]}"]
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}: no rectified camera {found[1]} ({error}); get KITTI's calibration of "
                f"{date} again"
            ) from error
        return rescaled((fx, fy, cx, cy), (int(height), int(width)), size)

    @cached_property
    def _calibrations(self) -> dict[str, _Calibration | None]:
        """Date -> rectified cameras of its calibration file."""
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
    found = {}
    for line in text.splitlines():
        key, _, values = line.partition(":")
        if key.startswith(("P_rect_", "S_rect_")):
            try:
                found[key] = [float(value) for value in values.split()]
            except ValueError as error:
                raise DataError(f"{path}: {key}: {error}") from error
    return found

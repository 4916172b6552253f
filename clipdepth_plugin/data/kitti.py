"""KITTI's cameras: rectified intrinsics from the calibration files beside the raw drives."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.camera import rescaled
from clipdepth_plugin.errors import DataError

logger = logging.getLogger(__name__)

_CAMERA = re.compile(r"image_(\d\d)")


class KittiCameras:
    """Intrinsics of the pictures below a raw folder: ``<date>/calib_cam_to_cam.txt``."""

    def __init__(self, root: Path) -> None:
        """Keeps the folder; files are read when they are needed, once."""
        self._root = root
        self._dates: dict[str, dict[str, list[float]] | None] = {}

    def camera(self, image: str, focal: float | None, size: tuple[int, int]) -> Intrinsics | None:
        """The camera of a picture.

        Args:
            image: ``<date>/<drive>/image_02/data/<frame>.png``.
            focal: As the list says, in pixels. It stands in where there is no calibration file,
                with the picture's middle as centre; a warning says so, once for each date.
            size: (H, W) of the picture as stored.

        Returns:
            (fx, fy, cx, cy); None where nothing is known.

        Raises:
            DataError: The calibration file is there and damaged.
        """
        date = image.partition("/")[0]
        calibration, camera = self.calibration(image), _CAMERA.search(image)
        if calibration is None or camera is None:
            return None if focal is None else (focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2)
        try:
            fx, _, cx, _, _, fy, cy, *_ = calibration[f"P_rect_{camera[1]}"]
            width, height = calibration[f"S_rect_{camera[1]}"]
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{self._path(date)}: no rectified camera {camera[1]} ({error}); get KITTI's "
                f"calibration of {date} again"
            ) from error
        return rescaled((fx, fy, cx, cy), (int(height), int(width)), size)

    def calibration(self, image: str) -> dict[str, list[float]] | None:
        """What the calibration file of a picture's date says of all cameras; None without one.

        Raises:
            DataError: It is damaged.
        """
        date = image.partition("/")[0]
        if date not in self._dates:
            self._dates[date] = self._read(date)
        return self._dates[date]

    def _path(self, date: str) -> Path:
        return self._root / date / "calib_cam_to_cam.txt"

    def _read(self, date: str) -> dict[str, list[float]] | None:
        try:
            text = self._path(date).read_text(encoding="ascii")
        except FileNotFoundError:
            logger.warning(
                "%s: no such file; focal lengths are the list's, the principal point is taken to "
                "be the picture's middle. KITTI's calibration archive of that date has it",
                self._path(date),
            )
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._path(date)}: can't be read ({error})") from error
        found = {}
        for line in text.splitlines():
            key, _, values = line.partition(":")
            if key.startswith(("P_rect_", "S_rect_")):
                try:
                    found[key] = [float(value) for value in values.split()]
                except ValueError as error:
                    raise DataError(f"{self._path(date)}: {key}: {error}") from error
        return found

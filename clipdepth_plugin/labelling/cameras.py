"""The camera of each picture: as the user says, else as the data set, else as EXIF, else unknown.

A camera is never guessed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.files.cameras import read_cameras
from clipdepth_plugin.labelling.pictures.kinds import Content
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.lenses import LensCheck, centred

logger = logging.getLogger(__name__)


class Cameras:
    """Says the camera of a picture; may be asked by several threads."""

    def __init__(self, settings: LabelSettings) -> None:
        """Reads the file of cameras, where one is given.

        Raises:
            DataError: It can't be read, or has something else in it.
        """
        self._settings = settings
        self._check = LensCheck()
        given = settings.intrinsics_file
        self._file = None if given is None else read_cameras(Path(given))

    def __call__(self, name: str, content: Content) -> Intrinsics | None:
        """The camera of a picture, ``<sequence>/<frame>``; None where it is not known.

        Raises:
            DataError: The one that the user, or the data set, gives is of no lens.
        """
        height, width, _ = content.image_HW3.shape
        settings = self._settings
        try:
            camera = self._given(name, content)
            if camera is not None:
                self._check(camera, (height, width), f"{name}: intrinsics")
                return camera
        except HostError as error:
            raise DataError(str(error)) from error
        if not settings.exif or content.exif_focal is None or self._in_file(name):
            return None
        camera = centred(content.exif_focal, (height, width))
        try:
            self._check(camera, (height, width), f"{name}: EXIF")
        except HostError as error:
            logger.info("%s; taken as unknown", error)
            return None
        return camera

    def _given(self, name: str, content: Content) -> Intrinsics | None:
        height, width, _ = content.image_HW3.shape
        settings = self._settings
        if settings.focal_px is not None:
            return centred(settings.focal_px, (height, width))
        if settings.intrinsics is not None:
            return settings.intrinsics
        if self._file is None or not self._file.has(name):
            return content.camera
        lens = self._file.of(name)  # null there says that it is not known
        if lens is not None and lens.is_distorted:
            raise DataError(
                f"{name}: its camera has a distortion, which labels have no place for; undistort "
                "the pictures first"
            )
        return None if lens is None else lens.at((height, width), name).camera

    def _in_file(self, name: str) -> bool:
        return self._file is not None and self._file.has(name)

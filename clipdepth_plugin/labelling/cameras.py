"""The camera of each picture: as the user says, else as the data set, else as EXIF, else unknown.

A camera is never guessed.
"""

from __future__ import annotations

import logging

from pydantic import TypeAdapter

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.problems import checked_type
from clipdepth_plugin.labelling.pictures.kinds import Content
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.settings import GivenCamera

logger = logging.getLogger(__name__)

_FILE_BYTES = 256 * MIB  # a camera for each of some million frames
_CAMERAS: TypeAdapter[dict[str, Intrinsics | None]] = TypeAdapter(dict[str, GivenCamera | None])


class Cameras:
    """Says the camera of a picture; may be asked by several threads."""

    def __init__(self, settings: LabelSettings) -> None:
        """Reads the file of cameras, where one is given.

        Raises:
            DataError: It can't be read, or has something else in it.
        """
        self._settings = settings
        self._check = LensCheck()
        self._by_name: dict[str, Intrinsics | None] = {}
        if settings.intrinsics_file is not None:
            path = settings.intrinsics_file
            tree = read_json(path, DataError, limit=_FILE_BYTES)
            self._by_name = checked_type(_CAMERAS, tree, path, DataError)

    def __call__(self, name: str, content: Content) -> Intrinsics | None:
        """The camera of a picture, ``<sequence>/<frame>``; None where it is not known.

        Raises:
            DataError: The one that the user, or the data set, gives is of no lens.
        """
        height, width, _ = content.image_HW3.shape
        camera, settings = self._given(name, content), self._settings
        try:
            if camera is not None:
                self._check(camera, (height, width), f"{name}: intrinsics")
                return camera
        except HostError as error:
            raise DataError(str(error)) from error
        if not settings.exif or content.exif_focal is None or name in self._by_name:
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
        if name in self._by_name:  # null there says that it is not known
            return self._by_name[name]
        return content.camera

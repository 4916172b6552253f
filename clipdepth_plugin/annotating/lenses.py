"""The camera (fx, fy, cx, cy) of each picture: as the user says, else unknown; never guessed.

LeRobot has no field for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from clipdepth_plugin.annotating.settings import AnnotateSettings
from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import DataError, HostError, SourceError, quoted
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.problems import checked_type
from clipdepth_plugin.labelling.lerobot import short_name
from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.settings import GivenCamera

_FILE_BYTES = 64 * MIB
_CAMERAS: TypeAdapter[dict[str, Intrinsics | None]] = TypeAdapter(dict[str, GivenCamera | None])


class Lenses:
    """Says the camera of a picture.

    Attributes:
        given: What the file says: camera key, or ``<episode>/<camera key>`` -> camera.
    """

    def __init__(self, settings: AnnotateSettings, cameras: Sequence[str], episodes: int) -> None:
        """Reads the file of cameras, where one is given.

        Raises:
            DataError: It can't be read, or names a camera or an episode that is not there.
        """
        self._settings, self._check = settings, LensCheck()
        self.given: dict[str, Intrinsics | None] = {}
        if settings.intrinsics_file is None:
            return
        path = settings.intrinsics_file
        tree = read_json(path, DataError, limit=_FILE_BYTES)
        keys = {name: key for key in cameras for name in (key, short_name(key))}
        for name, lens in checked_type(_CAMERAS, tree, path, DataError).items():
            episode, slash, camera = name.rpartition("/")
            known = not slash or (episode.isdecimal() and int(episode) < episodes)
            if camera not in keys or not known:
                raise DataError(
                    f"{path}: {quoted(name)}: expected a camera, or EPISODE/CAMERA; cameras are "
                    f"{', '.join(map(short_name, cameras))}, episodes 0 to {episodes - 1}"
                )
            self.given[_at(int(episode), keys[camera]) if slash else keys[camera]] = lens

    def __call__(self, episode: int, camera: str, size: tuple[int, int]) -> Intrinsics | None:
        """The camera of pictures of ``size`` (height, width); None where it is not known.

        Raises:
            SourceError: The one that the user gives is of no lens.
        """
        settings, lens = self._settings, self._settings.intrinsics
        if settings.focal_px is not None:
            lens = centred(settings.focal_px, size)
        elif lens is None:  # null of an episode says that it is not known there
            of_episode = _at(episode, camera)
            lens = self.given.get(of_episode if of_episode in self.given else camera)
        try:
            if lens is not None:
                self._check(lens, size, f"{camera}: intrinsics")
        except HostError as error:
            raise SourceError(str(error)) from error
        return lens


def _at(episode: int, camera: str) -> str:
    return f"{episode:06d}/{camera}"

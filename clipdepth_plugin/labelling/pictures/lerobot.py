"""LeRobot data sets (v3): a sequence for each episode and camera.

``lerobot:ORG/NAME``, or ``lerobot:FOLDER``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from clipdepth_plugin.labelling.lerobot import LeRobotFrames, short_name
from clipdepth_plugin.labelling.names import sequence_name
from clipdepth_plugin.labelling.pictures.kinds import (
    JPEG,
    Content,
    Options,
    Pictures,
    PictureSpec,
    Unread,
    register_pictures,
)

_SCHEME = "lerobot:"


def _is_lerobot(spec: PictureSpec) -> bool:
    return isinstance(spec, str) and spec.startswith(_SCHEME)


@register_pictures("lerobot", recognises=_is_lerobot)
class LeRobotPictures(Pictures):
    """The camera frames of a data set; each episode is a part."""

    reads_to_skip = False  # rows are read by number

    def __init__(self, spec: str, options: Options) -> None:
        """Opens the data set; a local one is not looked for elsewhere."""
        self._frames = LeRobotFrames(spec.removeprefix(_SCHEME))
        self._every = options.every
        self._parts = self._frames.name.split("/")
        self.titles = {sequence_name(*self._parts): self._frames.place}

    @property
    def parts(self) -> int:
        """See ``Pictures``."""
        return len(self._frames.episodes)

    def part(self, number: int) -> Iterator[Unread]:
        """See ``Pictures``."""
        first, end = self._frames.episodes[number]
        sequences = {
            camera: sequence_name(*self._parts, f"{number:06d}", short_name(camera))
            for camera in self._frames.cameras
        }
        for index in range(first, end, self._every):
            for camera, sequence in sequences.items():
                name, place = f"{sequence}/{index - first:06d}", f"row {index}, {camera}"
                yield Unread(name, place, functools.partial(self._read, index, camera))

    def length(self, number: int) -> int:
        """See ``Pictures``."""
        first, end = self._frames.episodes[number]
        return len(self._frames.cameras) * len(range(first, end, self._every))

    def _read(self, index: int, camera: str) -> Content:
        return Content(self._frames.read(index, camera), None, JPEG)

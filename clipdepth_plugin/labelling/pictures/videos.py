"""Video files, decoded by PyAV (extra ``video``) frame by frame: a sequence each.

A frame is called by its number. Only a few frames are in memory at a time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipdepth_plugin.errors import ImageError, printable
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.files.videos import (
    FAULTS,
    damaged,
    is_video,
    open_container,
    require_av,
    upright,
    video_stream,
)
from clipdepth_plugin.labelling.names import sequence_name
from clipdepth_plugin.labelling.pictures.kinds import (
    JPEG,
    Content,
    Options,
    Pictures,
    Unread,
    register_pictures,
)


class Videos(Pictures):
    """Video files, a part each."""

    reads_to_skip = True

    def __init__(self, paths: Sequence[str], options: Options) -> None:
        """Takes every n-th frame of each."""
        require_av()
        self._paths = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
        self._every = options.every
        names = [sequence_name(path.name) for path in self._paths]
        self._sequences = names
        self.titles = dict(zip(names, map(str, self._paths), strict=True))
        if len(self.titles) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            both = [str(path) for path in self._paths if path.name == twice]
            raise ImageError(
                f"{', '.join(map(printable, both))}: would be one sequence; label them into "
                "folders of their own"
            )
        for path in self._paths:
            check_file(path, ImageError)

    @property
    def parts(self) -> int:
        """See ``Pictures``."""
        return len(self._paths)

    def part(self, number: int) -> Iterator[Unread]:
        """See ``Pictures``."""
        path = self._paths[number]
        index = -1
        try:
            with open_container(path) as container:
                stream = video_stream(container, path)
                stream.thread_type = "AUTO"
                for index, frame in enumerate(container.decode(stream)):
                    if index % self._every == 0:
                        sequence = sequence_name(path.name, index=index)
                        name, place = f"{sequence}/{index:06d}", f"{path}, frame {index}"
                        yield Unread(name, place, functools.partial(_content, frame, place))
        except FAULTS as error:
            reason = damaged(path, error, f"from frame {index + 1} on")
            name = f"{self._sequences[number]}/damaged"
            yield Unread(name, str(path), functools.partial(_raise, reason))

    def length(self, number: int) -> int | None:
        """As the file's head says it."""
        path = self._paths[number]
        try:
            with open_container(path) as container:
                frames: int = video_stream(container, path).frames
        except FAULTS:  # named when it is read
            return None
        return -(-frames // self._every) or None


@register_pictures("video", recognises=is_video)
def open_video(spec: str, options: Options) -> Pictures:
    """One video file."""
    return Videos([spec], options)


def _content(frame: Any, place: str) -> Content:
    return Content(upright(frame, place), None, JPEG)


def _raise(error: ImageError) -> Content:
    raise error

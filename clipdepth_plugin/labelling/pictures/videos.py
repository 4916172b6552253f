"""Video files, decoded by PyAV (extra ``label``) frame by frame: a sequence each.

A frame is called by its number. Only a few frames are in memory at a time.

Axes: H W pixels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdepth_plugin.data.files import require
from clipdepth_plugin.errors import ImageError, printable
from clipdepth_plugin.files.opening import MAX_PIXELS, too_large
from clipdepth_plugin.files.paths import check_file, is_folder
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

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,ogg,asf"
"""Formats that hold their own frames; playlists, which name other files, are none of them."""
_OPENED = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


def is_video(spec: PictureSpec) -> bool:
    """Whether it is named as a video file is."""
    if not isinstance(spec, str) or not spec.lower().endswith(VIDEO_SUFFIXES):
        return False
    return not is_folder(Path(spec)) and not (set("*?[") & set(spec) and not os.path.lexists(spec))


class Videos(Pictures):
    """Video files, a part each."""

    reads_to_skip = True

    def __init__(self, paths: Sequence[str], options: Options) -> None:
        """Takes every n-th frame of each."""
        require("av", "label", "a video")
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
            with _opened(path) as container:
                stream = _stream(container, path)
                stream.thread_type = "AUTO"
                for index, frame in enumerate(container.decode(stream)):
                    if index % self._every == 0:
                        sequence = sequence_name(path.name, index=index)
                        name, place = f"{sequence}/{index:06d}", f"{path}, frame {index}"
                        yield Unread(name, place, functools.partial(_content, frame, place))
        except (OSError, ValueError) as error:  # FFmpegError is one of both
            reason = _damaged(path, error, f"from frame {index + 1} on")
            name = f"{self._sequences[number]}/damaged"
            yield Unread(name, str(path), functools.partial(_raise, reason))

    def length(self, number: int) -> int | None:
        """As the file's head says it."""
        path = self._paths[number]
        try:
            with _opened(path) as container:
                frames: int = _stream(container, path).frames
        except (OSError, ValueError):  # named when it is read
            return None
        return -(-frames // self._every) or None


@register_pictures("video", recognises=is_video)
def open_video(spec: str, options: Options) -> Pictures:
    """One video file."""
    return Videos([spec], options)


def _opened(path: Path) -> Any:
    av = require("av", "label", "a video")
    check_file(path, ImageError)
    return av.open(str(path), "r", options=_OPENED)


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise ImageError(f"{printable(path)}: has no video in it")
    return container.streams.video[0]


def _content(frame: Any, place: str) -> Content:
    if frame.width * frame.height > MAX_PIXELS:
        raise too_large(place, (frame.width, frame.height), MAX_PIXELS, ImageError)
    pixels_HW3 = frame.to_ndarray(format="rgb24")
    # The angle is counter-clockwise, as NumPy's turns are.
    turns = round(frame.rotation / 90)
    return Content(np.ascontiguousarray(np.rot90(pixels_HW3, turns)), None, JPEG)


def _damaged(path: Path, error: Exception, where: str) -> ImageError:
    if isinstance(error, ImageError):
        return error
    return ImageError(
        f"{printable(path)}: the video is damaged or of a format that is not read, {where} "
        f"({type(error).__name__}: {error}); copy or convert it again"
    )


def _raise(error: ImageError) -> Content:
    raise error

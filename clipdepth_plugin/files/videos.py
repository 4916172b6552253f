"""Videos by PyAV (extra ``video``), frame by frame: only a few frames are in memory at a time.

Axes: H W pixels.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import ImageError, printable
from clipdepth_plugin.files.opening import MAX_PIXELS, too_large
from clipdepth_plugin.files.paths import check_file, is_folder

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,ogg,asf"
"""Formats that hold their own frames; playlists, which name other files, are none of them."""
FAULTS = (OSError, ValueError, EOFError, LookupError, RuntimeError)
"""What PyAV raises on damaged files: each of its errors is one of these, too."""
_OPENED = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


def is_video(name: object) -> bool:
    """Whether it is named as a video file is."""
    if not isinstance(name, str) or not name.lower().endswith(VIDEO_SUFFIXES):
        return False
    return not is_folder(Path(name)) and not (set("*?[") & set(name) and not os.path.lexists(name))


def require_av() -> Any:
    """PyAV.

    Raises:
        ImageError: It is not installed.
    """
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise ImageError(
            'a video needs the package av: pip install "clipdepth-plugin[video]"'
        ) from error


def open_container(path: Path) -> Any:
    """A video file as PyAV's container.

    Raises:
        ImageError: It can't be read.
    """
    av = require_av()
    check_file(path, ImageError)
    return av.open(str(path), "r", options=_OPENED)


def video_stream(container: Any, path: Path) -> Any:
    """The first video in a container.

    Raises:
        ImageError: There is none.
    """
    if not container.streams.video:
        raise ImageError(f"{printable(path)}: has no video in it")
    return container.streams.video[0]


def upright(frame: Any, place: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A frame of PyAV as (H, W, 3) uint8 RGB, turned as its file says.

    Raises:
        ImageError: It has more than ``max_pixels``.
    """
    if frame.width * frame.height > max_pixels:
        raise too_large(place, (frame.width, frame.height), max_pixels, ImageError)
    pixels_HW3 = frame.to_ndarray(format="rgb24")
    # The angle is counter-clockwise, as NumPy's turns are.
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(pixels_HW3, turns))


def damaged(path: Path, error: Exception, where: str) -> ImageError:
    """The error about a video that can't be decoded."""
    if isinstance(error, ImageError):
        return error
    return ImageError(
        f"{printable(path)}: the video is damaged or of a format that is not read, {where} "
        f"({type(error).__name__}: {error}); copy or convert it again"
    )


def clock(time: int, time_base: Fraction) -> str:
    """A frame's time as m:ss."""
    seconds = int(time * time_base)
    return f"{seconds // 60}:{seconds % 60:02d}"


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image_HW3: uint8 RGB, upright.
        time: In units of the video's ``time_base``.
    """

    image_HW3: NDArray[np.uint8]
    time: int


class Video:
    """A video file that is read from its beginning; a context manager.

    Attributes:
        path: Of the file.
        time_base: Seconds of a unit of its frames' times.
        rate: Frames in a second, on average.
        frames: How many its head says that it has; None where it does not.
        sounds: PyAV's streams of sound.
    """

    def __init__(self, path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        """Opens it.

        Raises:
            ImageError: It can't be read, or has no video in it.
        """
        self.path, self._max_pixels = path, max_pixels
        try:
            self._container = open_container(path)
        except FAULTS as error:
            raise damaged(path, error, "from the start") from error
        try:
            self._stream = video_stream(self._container, path)
        except ImageError:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 1000)
        self.rate: Fraction = self._stream.average_rate or Fraction(25)
        self.frames: int | None = self._stream.frames or self._estimated()
        self.sounds: list[Any] = list(self._container.streams.audio)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _estimated(self) -> int | None:
        """Containers such as Matroska do not count their frames."""
        duration = self._container.duration  # microseconds
        return round(duration / 1e6 * self.rate) or None if duration else None

    def items(self) -> Iterator[Frame | Any]:
        """Frames, and packets of sound as they are stored, in the file's order.

        Raises:
            ImageError: The file is damaged, or has no frame in it; what came before is right.
        """
        number, last = 0, None
        try:
            for packet in self._container.demux(self._stream, *self.sounds):
                if packet.stream is not self._stream:
                    if packet.dts is not None:  # the last, empty one has none
                        yield packet
                    continue
                for frame in packet.decode():
                    place = f"{self.path}, frame {number}"
                    time = self._time(frame.pts, number, last)
                    yield Frame(upright(frame, place, self._max_pixels), time)
                    number, last = number + 1, time
        except FAULTS as error:
            raise damaged(self.path, error, f"from frame {number} on") from error
        if not number:
            raise ImageError(f"{printable(self.path)}: has no frame in it")
        self._check_end(last or 0)

    def _check_end(self, last: int) -> None:
        """Some containers end without an error where their file was cut off."""
        duration = self._stream.duration
        if duration is None and not self.sounds:  # microseconds; sound may be longer
            duration = (self._container.duration or 0) / 1_000_000 / self.time_base
        start = self._stream.start_time or 0
        end, whole = (last - start) * self.time_base, (duration or 0) * self.time_base
        if end < 0.9 * float(whole) - 1:
            raise ImageError(
                f"{printable(self.path)}: ends at {clock(last, self.time_base)} of "
                f"{clock(int(duration or 0), self.time_base)}: it was cut short; copy it again"
            )

    def _time(self, time: int | None, number: int, last: int | None) -> int:
        """Frame times rise; where a file says none, they follow from its rate."""
        if time is None:
            time = round(number / self.rate / self.time_base)
        return time if last is None else max(time, last + 1)

"""A video that is written frame by frame, with the frame times and the sound of another.

H.264 in MP4, which browsers and every player show. Axes: H W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.files.videos import FAULTS, Video, open_container, require_av

WIDEST = 4096
"""Pixels; wider ones are made smaller, as few devices decode more."""

VIDEO_NOTE = "depth in colours, written by clipdepth predict"
"""What a video of ours says of itself, and by which it is known as ours."""

_QUALITY = {"crf": "20", "preset": "veryfast"}
_BT709 = 1
_COPIED = ("aac", "ac3", "alac", "eac3", "mp3", "mp3float", "opus")
"""Sounds that players take in MP4, by the names of FFmpeg's decoders; others are encoded anew."""


class VideoWriter:
    """Writes an MP4 file; a context manager, whose end makes it whole: also after an error."""

    def __init__(self, path: Path, like: Video) -> None:
        """``like``: has the frames' times and the sound.

        Raises:
            DepthFileError: The file can't be made.
        """
        self._av, self._like, self._path = require_av(), like, path
        self._size: tuple[int, int] | None = None
        self._waiting: list[Any] = []
        try:
            self._container = self._av.open(str(path), "w", format="mp4")
        except FAULTS as error:
            raise self._failed(error) from error
        self._container.metadata["comment"] = VIDEO_NOTE
        self._stream = self._container.add_stream("libx264", rate=like.rate, options=_QUALITY)
        self._stream.codec_context.time_base = like.time_base
        self._sounds = {sound.index: self._sound(sound) for sound in like.sounds}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._size is not None:
                self._mux(self._stream.encode())
                for copied, stream in self._sounds.values():
                    if not copied:
                        self._mux(stream.encode(None))
            self._container.close()
        except FAULTS as error:
            raise self._failed(error) from error

    def frame(self, image_HW3: NDArray[np.uint8], time: int) -> None:
        """Writes a frame, (H, W, 3) uint8 RGB; the first one says the video's size.

        Raises:
            DepthFileError: It can't be written.
        """
        image_HW3 = self._fitted(image_HW3)
        plain = self._av.VideoFrame.from_ndarray(image_HW3, format="rgb24")
        frame = plain.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = time, self._like.time_base
        try:
            self._mux(self._stream.encode(frame))
        except FAULTS as error:
            raise self._failed(error) from error
        while self._waiting:
            self.sound(self._waiting.pop(0))

    def sound(self, packet: Any) -> None:
        """Takes a packet of sound: as it is, or as AAC where players take no such sound in MP4."""
        if self._size is None:  # the file's head comes first, and has the pictures' size in it
            self._waiting.append(packet)
            return
        copied, stream = self._sounds[packet.stream.index]
        try:
            if copied:
                packet.stream = stream
                self._container.mux(packet)
                return
            for frame in packet.decode():
                self._mux(stream.encode(frame))
        except FAULTS as error:
            raise self._failed(error) from error

    def _sound(self, sound: Any) -> tuple[bool, Any]:
        if sound.codec_context.name in _COPIED:
            return True, self._container.add_stream_from_template(sound)
        return False, self._container.add_stream("aac", rate=sound.codec_context.sample_rate)

    def _fitted(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Of the video's size: both sides are even, and no wider than ``WIDEST``."""
        height, width = image_HW3.shape[:2]
        if self._size is None:
            scale = min(1.0, WIDEST / width)
            self._size = _even(height * scale), _even(width * scale)
            context = self._stream.codec_context
            context.height, context.width = self._size
            context.pix_fmt = "yuv420p"
            context.colorspace = context.color_primaries = context.color_trc = _BT709
        rows, columns = self._size
        added = rows - height, columns - width
        if min(added) >= 0 and max(added) <= 1:
            return np.pad(image_HW3, ((0, added[0]), (0, added[1]), (0, 0)), mode="edge")
        return np.asarray(Image.fromarray(image_HW3).resize((columns, rows)))

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._container.mux(packet)

    def _failed(self, error: Exception) -> DepthFileError:
        return DepthFileError(f"{self._path}: the video can't be written ({error})")


def _even(side: float) -> int:
    """The even number of pixels that holds a side."""
    return max(2, 2 * math.ceil(side / 2 - 1e-6))


def is_our_video(path: Path) -> bool:
    """Whether ``VideoWriter`` wrote it."""
    try:
        with open_container(path) as container:
            return bool(container.metadata.get("comment") == VIDEO_NOTE)
    except FAULTS:
        return False

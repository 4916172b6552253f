"""Videos of ``clipdepth predict``: a video of colours, and the files of each frame.

Axes: H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipdepth_plugin.cli.predict_cameras import View, ViewMaker
from clipdepth_plugin.cli.predict_files import Predicted
from clipdepth_plugin.cli.predict_inputs import OUR_VIDEO_SUFFIX
from clipdepth_plugin.cli.predict_overwrite import refuse_foreign
from clipdepth_plugin.errors import DepthFileError, ImageError, printable
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.files.colours import Ends, ends_of
from clipdepth_plugin.files.paths import is_folder, names_in
from clipdepth_plugin.files.turbo import beside
from clipdepth_plugin.files.video_writing import VideoWriter, is_our_video
from clipdepth_plugin.files.videos import Frame, Video, clock

_FOLLOW = 0.1
"""Share by which the colours' ends follow each frame: jumps of a frame alone do not flicker."""

Predict = Callable[[list[View]], list[Predicted]]
Write = Callable[[Path, int, Predicted], object]


class Ended(NamedTuple):
    """How far a video came.

    Attributes:
        frames: How many are done.
        said: In words, for the user.
        error: Why it ended early, where it is damaged.
    """

    frames: int
    said: str
    error: ImageError | None = None


class VideoPrediction:
    """Predicts videos frame by frame; memory does not grow with their length."""

    def __init__(
        self,
        folder: Path,
        predict: Predict,
        make_view: ViewMaker,
        *,
        batch_size: int,
        max_pixels: int,
        write_frame: Write | None,
    ) -> None:
        """Keeps all of it.

        Args:
            folder: Where NAME.colour.mp4 goes.
            predict: From views to their maps.
            make_view: From a frame to its view.
            batch_size: Frames that are predicted together.
            max_pixels: Frames with more are refused.
            write_frame: Given the video, a frame's number and its maps; None: frames have no files.
        """
        self._folder, self._predict, self._make_view = folder, predict, make_view
        self._batch_size, self._max_pixels = batch_size, max_pixels
        self._write_frame = write_frame

    def __call__(
        self, path: Path, stopped: Callable[[], bool], advance: Callable[[int, int | None], None]
    ) -> Ended:
        """Predicts a video.

        Args:
            path: Of the video.
            stopped: Asked between frames; the file is whole, too, where it ends early.
            advance: Told how many more frames are done, of how many.

        Raises:
            ImageError: Nothing of it can be read.
            DepthFileError: Something can't be written.
        """
        name = f"{path.stem}{OUR_VIDEO_SUFFIX}"
        with Video(path, max_pixels=self._max_pixels) as video:
            error, done, time, ends = None, 0, 0, None
            with new_files(self._folder, DepthFileError) as temporary:
                with VideoWriter(temporary / name, video) as writer:
                    try:
                        for batch in self._batches(video, writer, stopped):
                            views = [self._view(frame, path) for frame in batch]
                            for frame, one in zip(batch, self._predict(views), strict=True):
                                ends = _followed(ends, one)
                                writer.frame(_drawn(one, ends), frame.time)
                                if self._write_frame is not None:
                                    self._write_frame(path, done, one)
                                done, time = done + 1, frame.time
                            advance(len(batch), video.frames)
                    except ImageError as problem:
                        error = problem
                if not done and (error is not None or stopped()):
                    (temporary / name).unlink(missing_ok=True)
            is_stopped = stopped() and error is None
            if not done and error is not None:
                raise error
            of = f" of {video.frames}" if video.frames and (is_stopped or error) else ""
            said = (
                f"{printable(path)}: {done}{of} frames, {clock(time, video.time_base)}, in {name}"
            )
            return Ended(done, said, error)

    def _batches(
        self, video: Video, writer: VideoWriter, stopped: Callable[[], bool]
    ) -> Iterator[list[Frame]]:
        batch: list[Frame] = []
        for item in video.items():
            if stopped():
                return
            if not isinstance(item, Frame):
                writer.sound(item)
                continue
            batch.append(item)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _view(self, frame: Frame, path: Path) -> View:
        return self._make_view(Image.fromarray(frame.image_HW3), path, is_file=False)


def check_videos_replaced(videos: list[Path], folder: Path, *, frames: bool) -> None:
    """Refuses to replace videos and folders of frames that predict did not write.

    Raises:
        DepthFileError: There is one.
    """
    foreign = []
    for video in videos:
        path, below = folder / f"{video.stem}{OUR_VIDEO_SUFFIX}", folder / video.stem
        if os.path.lexists(path) and not is_our_video(path):
            foreign.append(path)
        taken = os.path.lexists(below) and not (
            is_folder(below) and not names_in(below, DepthFileError)
        )
        if frames and taken:
            foreign.append(below)
    refuse_foreign(foreign)


def _followed(ends: Ends | None, one: Predicted) -> Ends | None:
    if one.maps.is_empty:
        return ends
    new = ends_of(one.maps.map_HW.astype(np.float64))
    if ends is None:
        return new
    return Ends(*(old + _FOLLOW * (now - old) for old, now in zip(ends, new, strict=True)))


def _drawn(one: Predicted, ends: Ends | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return beside(np.asarray(one.view.image), one.maps.map_HW, ends, inverse=not one.maps.metric)

"""An episode's depth: read, estimated, and written as a LeRobot data set of this episode alone.

It is written by LeRobot's own writer into a temporary folder, which is then renamed: an episode is
done where its folder is there.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.annotating.encoding import DepthRange, Map
from clipdepth_plugin.annotating.plan import Plan
from clipdepth_plugin.data.files import require
from clipdepth_plugin.errors import ClipDepthError, DepthFileError, SourceError, shortened
from clipdepth_plugin.files.atomic import sync
from clipdepth_plugin.labelling.lerobot import lerobot_module, short_name
from clipdepth_plugin.labelling.source import DepthSource, Picture
from clipdepth_plugin.labelling.threads import run_ahead

COUNTS_FILE = "counts.json"
"""Camera -> pixels, those that are not known, those out of range."""

_WRITING = ".writing-episode-"
_TASK = "depth"  # a data set has one; the source's own stay in the source's files


class _Read(NamedTuple):
    row: int
    camera: str
    image_HW3: NDArray[np.uint8]


class EpisodeWriter:
    """Writes the depth of episodes.

    Attributes:
        source_seconds: Spent in the source so far.
    """

    def __init__(self, plan: Plan, source: DepthSource, encoder: Any, kept: DepthRange) -> None:
        """``encoder``: LeRobot's config of it; ``kept``: what of its range is used."""
        self._plan, self._source, self._encoder, self._kept = plan, source, encoder, kept
        self.source_seconds = 0.0

    def write(self, episode: int) -> int:
        """Writes an episode; the number of pictures.

        Raises:
            DataError: A picture of it can't be read.
            SourceError: The source failed, or a camera is of no lens.
            DepthFileError: It can't be written.
        """
        self._remove_leftovers(episode)
        where = f"episode {episode}"
        temporary = self._plan.job.parts / f"{_WRITING}{episode:06d}-{secrets.token_hex(4)}"
        try:
            with writing(self._plan.job.parts, where):
                pictures = self._fill(temporary, episode)
                _sync_tree(temporary)
                temporary.replace(self._plan.part(episode))
                sync(self._plan.job.parts)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return pictures

    def _remove_leftovers(self, episode: int) -> None:
        """Of a process that was killed; this one holds the lock of the episode's shard."""
        for left in self._plan.job.parts.glob(f"{_WRITING}{episode:06d}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _fill(self, folder: Path, episode: int) -> int:
        rows: Any = None
        counts, pictures = dict[str, list[int]](), 0
        frame: dict[str, Any] = {}
        keys = self._plan.depth_keys
        for read, depth_HW in self._depth(episode):
            stored = self._kept.stored(depth_HW)
            frame[keys[read.camera]] = stored.depth_HW1
            count = counts.setdefault(keys[read.camera], [0, 0, 0])
            for at, more in enumerate((depth_HW.size, stored.unknown, stored.out_of_range)):
                count[at] += more
            pictures += 1
            if len(frame) == len(keys):
                if rows is None:  # one without rows is false
                    rows = self._created(folder, frame)
                rows.add_frame({**frame, "task": _TASK})
                frame = {}
        with _quiet():
            rows.save_episode(parallel_encoding=False)
            rows.finalize()
        for key in keys.values():
            video = folder / rows.meta.video_path.format(**FIRST_FILE, video_key=key)
            check_frames(video, self._plan.length(episode), rows.meta.fps)
        (folder / COUNTS_FILE).write_text(json.dumps(counts))
        return pictures

    def _created(self, folder: Path, frame: dict[str, Any]) -> Any:
        module = lerobot_module("datasets.lerobot_dataset", "a depth stream")
        features = {
            key: {
                "dtype": "video",
                "shape": depth_HW1.shape,
                "names": ["height", "width", "channels"],
                "info": {"is_depth_map": True},
            }
            for key, depth_HW1 in frame.items()
        }
        fps = self._plan.frames.meta.fps
        return module.LeRobotDataset.create(
            _TASK, fps, features, root=folder, depth_encoder=self._encoder, video_backend="pyav"
        )

    def _depth(self, episode: int) -> Iterator[tuple[_Read, Map]]:
        """The maps in the order of rows and cameras; a thread reads ahead."""
        batch_size = self._plan.job.batch_size
        reading = run_ahead(self._reading(episode), 2 * batch_size)
        with contextlib.closing(reading):
            while batch := list(islice(reading, batch_size)):
                yield from zip(batch, self._estimated(episode, batch), strict=True)

    def _reading(self, episode: int) -> Generator[_Read, None, None]:
        for row in range(*self._plan.frames.episodes[episode]):
            for camera in self._plan.cameras:
                yield _Read(row, camera, self._plan.frames.read(row, camera))

    def _estimated(self, episode: int, batch: list[_Read]) -> list[Map]:
        pictures = [self._picture(episode, one) for one in batch]
        began = time.perf_counter()
        labels = self._source.label(pictures)
        self.source_seconds += time.perf_counter() - began
        sizes = [one.image_HW3.shape[:2] for one in batch]
        found = [one.depth_HW.shape for one in labels]
        if found != sizes:
            raise SourceError(
                f"{self._source.card.source}: of {', '.join(one.name for one in pictures)}, "
                f"pictures of {sizes} (height, width), it gives depth of {found}"
            )
        return [one.depth_HW for one in labels]

    def _picture(self, episode: int, read: _Read) -> Picture:
        height, width, _ = read.image_HW3.shape
        camera = self._plan.lenses(episode, read.camera, (height, width))
        frame = read.row - self._plan.frames.episodes[episode][0]
        name = f"{episode:06d}__{short_name(read.camera)}/{frame:06d}"
        return Picture(name, read.image_HW3, camera)


@contextlib.contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Errors of the disk and of LeRobot's writer as ours.

    Raises:
        DepthFileError: ``what`` can't be written into ``folder``.
    """
    try:
        yield
    except (ClipDepthError, MemoryError):
        raise
    except Exception as error:  # what LeRobot, PyAV, datasets and the disk raise
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DepthFileError(
            f"{folder}: {what} can't be written ({shortened(reason, 500)}); what is done stays. "
            "Check that the disk has room, and give the same command again"
        ) from error


def check_frames(path: Path, frames: int, fps: float) -> None:
    """Whether a video has so many frames, each at its time.

    Raises:
        OSError: It has not. LeRobot's writer logs the images that it can't write, and goes on.
    """
    av = require("av", "label", "a video")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = (one for one in container.demux(stream) if one.pts is not None)
        times = sorted(float(one.pts * stream.time_base) for one in packets)
    if len(times) != frames:
        raise OSError(f"{path.name} has {len(times)} frames, expected {frames}")
    for at, seconds in enumerate(times):
        if abs(seconds - at / fps) > TOLERANCE:
            raise OSError(f"{path.name} has frame {at} at {seconds} s, expected {at / fps} s")


TOLERANCE = 1e-4
"""Seconds, to which LeRobot looks for a frame."""

FIRST_FILE = {"chunk_index": 0, "file_index": 0}


def _quiet() -> contextlib.AbstractContextManager[Any]:
    quiet: contextlib.AbstractContextManager[Any] = lerobot_module(
        "utils.utils", "a depth stream"
    ).SuppressProgressBars()
    return quiet


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync(path)

"""write_labels: pictures in, a labelled RGB-D folder out.

Three stages run side by side: a thread lists the pictures and others decode them, the source
labels in the caller's thread, others write. The files on disk are the only state, so that a run
that was killed goes on by the same call.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.reading import BadFiles, Failure, map_ahead
from clipdepth_plugin.errors import ClipDepthError, SourceError
from clipdepth_plugin.labelling.cameras import Cameras
from clipdepth_plugin.labelling.dealing import count_of, opened_pictures, unread_of
from clipdepth_plugin.labelling.job import LabelJob, LabelReport, Progress
from clipdepth_plugin.labelling.masks import Masks
from clipdepth_plugin.labelling.pictures import Content, Pictures, Unread
from clipdepth_plugin.labelling.sink import LabelSink
from clipdepth_plugin.labelling.source import DepthSource, Label, Picture, open_source
from clipdepth_plugin.labelling.threads import run_ahead

_EMPTY_NAMED = 1000
Advance = Callable[[Progress], object]


class _Read(NamedTuple):
    name: str
    place: str
    content: Content
    camera: Intrinsics | None
    keep_HW: NDArray[np.bool_] | None

    @property
    def picture(self) -> Picture:
        return Picture(self.name, self.content.image_HW3, self.camera)

    @property
    def mirrored(self) -> Picture:
        image_HW3 = np.ascontiguousarray(self.content.image_HW3[:, ::-1])
        camera = self.camera
        if camera is not None:
            fx, fy, cx, cy = camera
            camera = (fx, fy, image_HW3.shape[1] - 1 - cx, cy)
        return Picture(self.name, image_HW3, camera)


class _Labelled(NamedTuple):
    read: _Read
    label: Label
    mirrored: Label | None


@dataclass
class _Counts:
    labelled: int = 0
    present: int = 0
    source_seconds: float = 0.0


def write_labels(
    job: LabelJob, *, source: DepthSource | None = None, advance: Advance = lambda _: None
) -> LabelReport:
    """Labels the pictures of a job, or of its shard; those that are labelled already stay.

    Args:
        job: What is to be done.
        source: The job's, opened already.
        advance: Told how far it is, often.

    Raises:
        ClipDepthError: The pictures, the source or the folder are wrong, or too many pictures are
            bad. All that is labelled by then stays, and the same call goes on from there.
    """
    try:
        pictures = opened_pictures(job)
        if source is None:
            source = opened_source(job.source, device=job.device, dtype=job.settings.dtype)
        with LabelSink(job.folder, job.split, source.card, job.settings, job.shard) as sink:
            return _Run(job, pictures, source, sink, advance).run()
    except ClipDepthError as error:
        if job.shard.of == 1:
            raise
        raise type(error)(f"shard {job.shard}: {error}") from error


def opened_source(
    source: str | Callable[[], DepthSource], *, device: str, dtype: str | None
) -> DepthSource:
    """The source of a job.

    Raises:
        SourceError: It can't be opened.
    """
    return open_source(source, device=device, dtype=dtype) if isinstance(source, str) else source()


class _Run:
    """A process's part of a job."""

    def __init__(
        self,
        job: LabelJob,
        pictures: list[Pictures],
        source: DepthSource,
        sink: LabelSink,
        advance: Advance,
    ) -> None:
        self._job, self._pictures, self._source = job, pictures, source
        self._sink, self._advance = sink, advance
        self._cameras, self._masks = Cameras(job.settings), Masks(job.settings.masks)
        self._bad = BadFiles(job.bad_file_limit, "left out")
        self._counts = _Counts()
        self._empty: list[str] = []

    def run(self) -> LabelReport:
        self._total = count_of(self._pictures, self._job.shard)
        began = time.perf_counter()
        ahead = 2 * self._job.batch_size + self._job.threads
        reading = run_ahead(self._reading(ahead), self._job.batch_size)
        with contextlib.closing(reading), contextlib.closing(self._labelled(reading)) as done:
            written = map_ahead(self._write, done, threads=self._job.threads, ahead=ahead)
            with contextlib.closing(written):
                for is_empty, name in written:
                    self._count_one(name, is_empty=is_empty)
        self._tell()
        counts = self._counts
        return LabelReport(
            counts.labelled,
            counts.present,
            tuple(self._empty),
            dict(self._bad.reasons),
            time.perf_counter() - began,
            counts.source_seconds,
        )

    def _reading(self, ahead: int) -> Generator[_Read | Failure, None, None]:
        """Runs in a thread of its own."""
        threads = self._job.threads
        yield from map_ahead(self._read, self._missing(), threads=threads, ahead=ahead)

    def _missing(self) -> Iterator[Unread]:
        for unread in unread_of(self._pictures, self._job.shard):
            if self._sink.has(unread.name):
                self._counts.present += 1
            else:
                yield unread

    def _read(self, unread: Unread) -> _Read | Failure:
        name = unread.name
        try:
            content = unread.read()
            camera = self._cameras(name, content)
            keep_HW = self._masks(name, content.image_HW3.shape[:2])
            return _Read(name, unread.place, content, camera, keep_HW)
        except ClipDepthError as error:
            return Failure(unread.place, str(error).removeprefix(f"{unread.place}: "))

    def _labelled(self, reading: Iterator[_Read | Failure]) -> Generator[_Labelled, None, None]:
        good = self._without_bad(reading)
        while batch := list(islice(good, self._job.batch_size)):
            yield from self._batch_labelled(batch)

    def _batch_labelled(self, batch: list[_Read]) -> list[_Labelled]:
        """The pictures that the source fails on are bad, as those that can't be read."""
        try:
            labels = self._label(batch, [one.picture for one in batch])
            mirrored: list[Label] | list[None] = [None] * len(batch)
            if self._job.settings.flip:
                mirrored = self._label(batch, [one.mirrored for one in batch])
            return [*map(_Labelled, batch, labels, mirrored)]
        except SourceError as error:
            if self._job.bad_file_limit == 0:
                raise
            if len(batch) > 1:  # which one it was
                return [one for single in batch for one in self._batch_labelled([single])]
            self._add_bad(Failure(batch[0].place, str(error)))
            return []

    def _without_bad(self, reading: Iterator[_Read | Failure]) -> Iterator[_Read]:
        for one in reading:
            if isinstance(one, Failure):
                self._add_bad(one)
            else:
                yield one

    def _add_bad(self, failure: Failure) -> None:
        try:
            self._bad.add([failure])
        finally:
            self._tell()

    def _label(self, batch: list[_Read], pictures: list[Picture]) -> list[Label]:
        began = time.perf_counter()
        labels = self._source.label(pictures)
        self._counts.source_seconds += time.perf_counter() - began
        sizes = [one.image_HW3.shape[:2] for one in pictures]
        found = [one.depth_HW.shape for one in labels]
        if found != sizes:
            raise SourceError(
                f"{self._source.card.source}: of {', '.join(one.name for one in batch)}, pictures "
                f"of {sizes} (height, width), it gives labels of {found}"
            )
        return labels

    def _write(self, labelled: _Labelled) -> tuple[bool, str]:
        """Runs in threads."""
        (name, _, content, camera, keep_HW), label, mirrored = labelled
        counts = self._sink.write(
            name,
            content,
            camera,
            label.depth_HW,
            mirrored_HW=None if mirrored is None else mirrored.depth_HW[:, ::-1],
            keep_HW=keep_HW,
        )
        return not counts, name

    def _count_one(self, name: str, *, is_empty: bool) -> None:
        self._counts.labelled += 1
        if is_empty and len(self._empty) < _EMPTY_NAMED:
            self._empty.append(name)
        self._tell()

    def _tell(self) -> None:
        counts, bad = self._counts, len(self._bad.reasons)
        done = counts.labelled + counts.present + bad
        self._advance(Progress(done, self._total, counts.labelled, bad))

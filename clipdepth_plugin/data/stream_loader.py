"""StreamLoader: batches from streams, decoded by threads.

Axes: B samples, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch

from clipdepth_plugin.data.batch import Batch
from clipdepth_plugin.data.failures import BadFiles, Failure
from clipdepth_plugin.data.items import Item, Reading, ViewMaker, collate
from clipdepth_plugin.data.order import Draw, EpochPlan
from clipdepth_plugin.data.stream import Record, StreamDataset, StreamMixture
from clipdepth_plugin.errors import ClipDepthError

_AHEAD = 2  # batches that are decoded while one is used


class _Part(NamedTuple):
    records: list[_Numbered]
    failures: list[Failure]  # of the stream so far


class _Numbered(NamedTuple):
    number: int
    stream: StreamDataset
    record: Record


class StreamLoader:
    """Batches of one epoch of a stream; can be run through again and gives the same ones.

    A record that can't be decoded is replaced by the next good one of its batch (which is then in
    it twice), so that every process goes on with whole batches.

    Attributes:
        bad: What could not be read, of the last run through.
    """

    def __init__(
        self, mixture: StreamMixture, maker: ViewMaker, plan: EpochPlan, reading: Reading
    ) -> None:
        """Keeps what it needs; ``make_loader`` documents what the arguments hold."""
        self._mixture, self._maker, self._plan, self._reading = mixture, maker, plan, reading
        self.bad = BadFiles(reading.bad_file_limit)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = BadFiles(self.bad.limit)
        return (batch for batch in self._batches() if batch is not None)

    def _batches(self) -> Iterator[Batch | None]:
        if self._reading.workers == 0:
            for part in self._parts():
                yield self._batch(part, [self._item(one) for one in part.records])
            return
        with (
            ThreadPoolExecutor(1, "stream") as reader,
            ThreadPoolExecutor(self._reading.workers, "decode") as pool,
        ):
            parts = self._parts()
            waiting: deque[tuple[_Part, list[Future[Item | Failure]]]] = deque()
            try:
                coming = reader.submit(_next, parts)
                while (found := coming.result()) is not None:
                    coming = reader.submit(_next, parts)
                    waiting.append((found, [pool.submit(self._item, one) for one in found.records]))
                    if len(waiting) > _AHEAD:
                        yield self._finished(*waiting.popleft())
                while waiting:
                    yield self._finished(*waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _parts(self) -> Iterator[_Part]:
        """This process's records of each batch, undecoded."""
        plan, failures = self._plan, list[Failure]()
        rank, world_size = (0, 1) if self._mixture.is_split else (plan.rank, plan.world_size)
        size = plan.batch_size * world_size
        numbered = self._numbered(failures)
        wanted = islice(numbered, plan.start_batch * size, None)
        while len(batch := list(islice(wanted, size))) == size:
            mine = batch[rank * plan.batch_size : (rank + 1) * plan.batch_size]
            yield _Part(mine, failures.copy())
        places = torch.arange(0 if plan.drop_last else len(batch)).tensor_split(world_size)[rank]
        yield _Part([batch[place] for place in places.tolist()], failures.copy())

    def _numbered(self, failures: list[Failure]) -> Iterator[_Numbered]:
        """Every record of the epoch; where the stream itself broke, that goes to ``failures``."""
        number = 0
        for stream, record in self._mixture.records(self._plan):
            if record.error is not None:
                failures.append(Failure(record.name, record.error))
                continue
            yield _Numbered(number, stream, record)
            number += 1

    def _item(self, one: _Numbered) -> Item | Failure:
        try:
            sample = one.stream.decode(one.record)
        except ClipDepthError as error:
            return Failure(one.record.name, str(error))
        draw = Draw(one.number, 0)
        own = one.stream.config.augment
        return self._maker.make(sample, draw, self._plan.epoch, self._reading.view, own)

    def _finished(self, part: _Part, coming: list[Future[Item | Failure]]) -> Batch | None:
        return self._batch(part, [future.result() for future in coming])

    def _batch(self, part: _Part, rows: list[Item | Failure]) -> Batch | None:
        self.bad.add([*part.failures, *(row for row in rows if isinstance(row, Failure))])
        if not rows:
            return None  # the end of the stream, for its failures
        good = [(place, row) for place, row in enumerate(rows) if isinstance(row, Item)]
        if not good:
            raise self.bad.error("a whole batch of the stream can't be read")
        following = [
            next((row for there, row in good if there >= place), good[0][1])
            for place in range(len(rows))
        ]
        batch = collate(following)
        return batch.pin_memory() if self._reading.pin_memory else batch


def _next(parts: Iterator[_Part]) -> _Part | None:
    return next(parts, None)

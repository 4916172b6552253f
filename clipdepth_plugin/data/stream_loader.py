"""StreamLoader: batches from streams, decoded by threads.

Axes: B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat
from typing import NamedTuple, cast

import torch

from clipdepth_plugin.data.items import Batch, Item, ViewMaker, collate
from clipdepth_plugin.data.order import Draw, EpochPlan
from clipdepth_plugin.data.reading import BadFiles, Failure, Reading, map_ahead
from clipdepth_plugin.data.stream import Record, StreamMixture
from clipdepth_plugin.errors import ClipDepthError


class _Numbered(NamedTuple):
    number: int
    part: int
    record: Record


class _Part(NamedTuple):
    """One process's part of a batch, undecoded, and where the stream itself broke so far."""

    records: list[_Numbered]
    failures: list[Failure]


class StreamLoader:
    """Batches of one epoch of a stream; can be run through again and gives the same ones.

    A record that can't be decoded is replaced by the next good one of its batch (which is then in
    it twice), so that every process has whole batches.
    """

    def __init__(
        self, mixture: StreamMixture, maker: ViewMaker, plan: EpochPlan, reading: Reading
    ) -> None:
        """Prepares to read; see ``make_loader`` for the arguments."""
        self._mixture, self._maker, self._plan, self._reading = mixture, maker, plan, reading
        self.bad = BadFiles(reading.bad_file_limit)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = BadFiles(self.bad.limit)
        threads = self._reading.workers
        parts = _read_ahead(self._parts(), threads) if threads else self._parts()
        for part, rows in map_ahead(self._decoded, parts, threads=threads, ahead=threads):
            self.bad.add([*part.failures, *(row for row in rows if isinstance(row, Failure))])
            if rows:  # the last part may be there for its failures alone
                yield self._batch(rows)

    def _parts(self) -> Iterator[_Part]:
        """This process's records of each batch, undecoded."""
        plan, failures = self._plan, list[Failure]()
        size = plan.batch_size * plan.world_size
        wanted = islice(self._numbered(failures), plan.start_batch * size, None)
        while len(batch := list(islice(wanted, size))) == size:
            mine = batch[plan.rank * plan.batch_size : (plan.rank + 1) * plan.batch_size]
            yield _Part(mine, failures.copy())
        places = torch.arange(0 if plan.drop_last else len(batch)).tensor_split(plan.world_size)
        yield _Part([batch[place] for place in places[plan.rank].tolist()], failures.copy())

    def _numbered(self, failures: list[Failure]) -> Iterator[_Numbered]:
        """Every record of the epoch; where the stream itself broke, that goes to ``failures``."""
        number = 0
        for part, record in self._mixture.records(self._plan):
            if record.error is not None:
                failures.append(Failure(record.name, record.error))
                continue
            yield _Numbered(number, part, record)
            number += 1

    def _decoded(self, part: _Part) -> tuple[_Part, list[Item | Failure]]:
        return part, [self._item(one) for one in part.records]

    def _item(self, one: _Numbered) -> Item | Failure:
        stream = self._mixture.streams[one.part]
        try:
            sample = stream.decode(one.record)
        except ClipDepthError as error:
            return Failure(one.record.name, str(error))
        draw, own = Draw(one.number, 0), stream.config.augment
        return self._maker.random(sample, draw, self._plan.epoch, own=own, part=one.part)

    def _batch(self, rows: list[Item | Failure]) -> Batch:
        good = [(place, row) for place, row in enumerate(rows) if isinstance(row, Item)]
        if not good:
            raise self.bad.error("a whole batch of the stream can't be read")
        following = [
            next((row for there, row in good if there >= place), good[0][1])
            for place in range(len(rows))
        ]
        batch = collate(following)
        return batch.pin_memory() if self._reading.pin_memory else batch


def _read_ahead(parts: Iterator[_Part], count: int) -> Iterator[_Part]:
    """The same, up to ``count`` of them read by a thread before they are asked for."""
    ended = object()
    for part in map_ahead(lambda _: next(parts, ended), repeat(None), threads=1, ahead=count):
        if part is ended:
            return
        yield cast("_Part", part)

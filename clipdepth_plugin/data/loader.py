"""make_loader: batches in an order that depends on seed and epoch alone.

Axes: B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from clipdepth_plugin.data.dataset import Mixture
from clipdepth_plugin.data.items import Batch, Item, ViewMaker, collate
from clipdepth_plugin.data.order import Draw, EpochOrder, EpochPlan
from clipdepth_plugin.data.reading import BadFiles, Failure, Reading
from clipdepth_plugin.data.stream import StreamMixture
from clipdepth_plugin.data.stream_loader import StreamLoader
from clipdepth_plugin.errors import ClipDepthError, DataError

_Read = tuple[Item | None, list[Failure]]


class Loader:
    """Batches of one epoch; can be run through again and gives the same ones."""

    def __init__(self, data: Mixture, maker: ViewMaker, plan: EpochPlan, reading: Reading) -> None:
        """Draws the order; ``make_loader`` documents what the arguments hold."""
        if len(data) == 0:
            raise DataError("the data set has no samples")
        self._order = EpochOrder(plan, data.counts, data.repeats)
        self._items = _Items(data, maker, plan.epoch, reading)
        self._reading = reading
        self.bad = BadFiles(reading.bad_file_limit)

    def __len__(self) -> int:
        """Batches that are left from ``start_batch`` on."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = BadFiles(self.bad.limit)
        loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_sampler=self._order,
            num_workers=self._reading.workers,
            collate_fn=_collate,
            pin_memory=self._reading.pin_memory,
            generator=torch.Generator(),  # so that the caller's random state is left alone
        )
        for batch, failures in loader:
            self.bad.add(failures)
            if batch is None:
                raise self.bad.error("no sample of the set can be read")
            yield batch


class _Items(Dataset[_Read]):
    """Rows by draw. A sample that can't be read is replaced by the next one that can."""

    def __init__(self, data: Mixture, maker: ViewMaker, epoch: int, reading: Reading) -> None:
        self._data, self._maker, self._epoch = data, maker, epoch
        self._tries = min(reading.bad_file_limit + 1, len(data))

    def __getitem__(self, draw: Draw) -> _Read:
        failures: list[Failure] = []
        for step in range(self._tries):
            index = (draw.index + step) % len(self._data)
            try:
                sample = self._data[index]
            except ClipDepthError as error:
                failures.append(Failure(self._data.name(index), str(error)))
                continue
            there, own = Draw(index, draw.repeat), self._data.augment_of(index)
            part = self._data.part_of(index)
            item = self._maker.random(sample, there, self._epoch, own=own, part=part)
            return item, failures
        return None, failures


def _collate(rows: list[_Read]) -> tuple[Batch | None, list[Failure]]:
    items = [item for item, _ in rows if item is not None]
    failures = [failure for _, found in rows for failure in found]
    return (collate(items) if len(items) == len(rows) else None), failures


def make_loader(
    data: Mixture | StreamMixture, maker: ViewMaker, plan: EpochPlan, reading: Reading
) -> Loader | StreamLoader:
    """Batches of one epoch.

    The order depends on (seed, epoch) alone, and what augmentation does to a sample on (seed,
    epoch, index) alone, whatever the number of workers and processes. The caller's random state is
    neither read nor changed. A sample that can't be read is logged by name and replaced by the
    next of the set that can.

    Args:
        data: What ``open_mixture`` gave, opened once for all epochs.
        maker: Makes views of its samples.
        plan: Which samples, in which batches.
        reading: How they are read.

    Returns:
        An iterable of batches; ``len`` says how many, except of streams.

    Raises:
        DataError: The set is empty; while iterating, when too many samples are bad.
    """
    if isinstance(data, StreamMixture):
        return StreamLoader(data, maker, plan, reading)
    return Loader(data, maker, plan, reading)

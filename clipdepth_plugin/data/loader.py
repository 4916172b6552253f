"""make_loader: batches in an order that depends on seed and epoch alone.

Axes: B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from clipdepth_plugin.data.augment_config import AugmentConfig
from clipdepth_plugin.data.batch import Batch
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import Mixture, SampleDataset
from clipdepth_plugin.data.failures import BadFiles, Failure
from clipdepth_plugin.data.items import Item, Reading, ViewMaker, collate
from clipdepth_plugin.data.opening import open_mixture
from clipdepth_plugin.data.order import Draw, EpochOrder, EpochPlan
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture
from clipdepth_plugin.data.stream_loader import StreamLoader
from clipdepth_plugin.errors import ClipDepthError, DataError

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing

Data = Sequence[DataConfig] | SampleDataset | StreamDataset | StreamMixture

_Read = tuple[Item | None, list[Failure]]


class Loader:
    """Batches of one epoch; can be run through again and gives the same ones.

    Attributes:
        bad: What could not be read, of the last run through.
    """

    def __init__(
        self, data: SampleDataset, maker: ViewMaker, plan: EpochPlan, reading: Reading
    ) -> None:
        """Draws the order; ``make_loader`` documents what the arguments hold.

        Raises:
            DataError: The set is empty.
        """
        if len(data) == 0:
            raise DataError("the data set has no samples")
        mixture = data if isinstance(data, Mixture) else Mixture([data], [1.0])
        self._order = EpochOrder(plan, mixture.counts, mixture.repeats)
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

    def __init__(self, data: SampleDataset, maker: ViewMaker, epoch: int, reading: Reading) -> None:
        self._data, self._maker, self._epoch, self._view = data, maker, epoch, reading.view
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
            there = Draw(index, draw.repeat)
            own = self._data.augment_of(index)
            return self._maker.make(sample, there, self._epoch, self._view, own), failures
        return None, failures


def _collate(rows: list[_Read]) -> tuple[Batch | None, list[Failure]]:
    items = [item for item, _ in rows if item is not None]
    failures = [failure for _, found in rows for failure in found]
    return (collate(items) if len(items) == len(rows) else None), failures


def make_loader(  # noqa: PLR0913
    data: Data,
    *,
    preprocessing: Preprocessing,
    output_size: tuple[int, int],
    batch_size: int,
    seed: int,
    epoch: int,
    augment: AugmentConfig | None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    drop_last: bool = True,
    shuffle: bool = True,
    view: int | None = None,
    bad_file_limit: int = 0,
    pin_memory: bool = False,
) -> Loader | StreamLoader:
    """Batches of one epoch.

    The order depends on (seed, epoch) alone, and what augmentation does to a sample on (seed,
    epoch, index) alone, whatever the number of workers and processes. The caller's random state is
    neither read nor changed.

    A sample that can't be read is logged by name and replaced by the next of the set that can.

    Args:
        data: Configs, or what ``open_dataset`` or ``open_mixture`` gave (opened once for all
            epochs).
        preprocessing: The host's; ``resize=None`` squashes the whole picture.
        output_size: (H, W) of the depth maps.
        batch_size: Of this process.
        seed: Of the run.
        epoch: Number of the epoch, from 0.
        augment: Random variation, of the sets that don't say their own; None varies none.
        workers: Processes that read (for streams: threads that decode); 0 reads as asked.
        rank: This process.
        world_size: Number of processes. Each takes its contiguous part of a global batch, so that
            W with batches of b see the batches of one with W * b.
        start_batch: Goes on from this batch of the epoch; those before are not read (of a stream:
            passed over without decoding).
        drop_last: Leave out a last batch that is not full. Kept, it is split evenly over the
            processes; the last ones may get nothing of it.
        shuffle: False takes the samples as they stand: for evaluation.
        view: Gives every sample in this view instead of a random one: 0 plain, 1 flipped, 2 and up
            augmented, the same in every epoch.
        bad_file_limit: Different samples of an epoch that may be bad, in this process; one more is
            an error that lists them.
        pin_memory: Page-locked memory for a GPU.

    Returns:
        An iterable of batches; ``len`` says how many, except of streams.

    Raises:
        DataError: A set can't be opened; while iterating, when too many samples are bad.
    """
    if isinstance(data, Sequence):
        data = open_mixture(data)
    maker = ViewMaker(preprocessing, output_size, augment, seed)
    plan = EpochPlan(
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
        drop_last=drop_last,
        shuffle=shuffle,
    )
    reading = Reading(
        view=view, workers=workers, bad_file_limit=bad_file_limit, pin_memory=pin_memory
    )
    if isinstance(data, StreamDataset):
        data = StreamMixture([data], [1.0])
    if isinstance(data, StreamMixture):
        return StreamLoader(data, maker, plan, reading)
    return Loader(data, maker, plan, reading)

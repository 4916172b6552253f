"""Sources of a run's batches: data sets through the tower, or through the token cache.

Axes: P pictures, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from clipdepth_plugin.data import (
    EpochOrder,
    EpochPlan,
    Mixture,
    Reading,
    StreamMixture,
    ViewMaker,
    make_loader,
    open_mixture,
)
from clipdepth_plugin.training.batches import FeatureSource, TowerSource, epoch_plan
from clipdepth_plugin.training.cached import CachedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from accelerate import Accelerator
    from torch import Tensor

    from clipdepth_plugin.data import Batch
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.progress import Reporter
    from clipdepth_plugin.training.tower import FrozenTower

    Data = Mixture | StreamMixture


@dataclass(frozen=True)
class Sources:
    """The data of a run.

    Attributes:
        train: Training batches.
        validation: Validation batches in order, or None.
        pictures: Number of pictures -> the first validation pictures (P, 3, H, W), uint8, at the
            output's size.
    """

    train: FeatureSource
    validation: FeatureSource | None
    pictures: Callable[[int], Tensor]


def open_data(config: TrainConfig) -> tuple[Data, Data | None]:
    """Opens the training and the validation sets; no sample is read.

    Raises:
        DataError: A set can't be opened.
    """
    sets = config.data
    return open_mixture(sets.train), open_mixture(sets.validation) if sets.validation else None


def make_sources(
    config: TrainConfig,
    accelerator: Accelerator,
    tower: FrozenTower,
    head: DepthHead,
    data: tuple[Data, Data | None],
    size: tuple[int, int],
    reporter: Reporter,
) -> Sources:
    """Makes the sources of batches, and fills the token cache where the run has one.

    Args:
        config: The run.
        accelerator: Its processes and device.
        tower: The frozen tower; moved to the device where it will run.
        head: Defines which features are read.
        data: As ``open_data`` gives it.
        size: (H, W) of the depth maps.
        reporter: Receives the progress of filling the cache.

    Raises:
        TrainingError: The cache was made by other weights or settings, or can't be written.
    """
    train, validation = data
    maker = _Maker(config, accelerator, tower, head, size)
    pictures = maker.pictures(validation)
    if config.cache is not None:
        cached = CachedRun(config, accelerator, tower, head, size, reporter)
        sources = [
            cached.source(one, training=one is train) if isinstance(one, Mixture) else None
            for one in data
        ]
        tower.host.to("cpu")
        assert sources[0] is not None  # a config with streams has no cache
        return Sources(sources[0], sources[1], pictures)
    tower.host.to(accelerator.device)
    measured = None if validation is None else maker.source(validation, training=False)
    return Sources(maker.source(train, training=True), measured, pictures)


def while_all_have_one(accelerator: Accelerator, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches until one process has no more, so that all are in the same epoch and batch."""
    coming = iter(batches)
    while True:
        batch = next(coming, None)
        have = torch.tensor(float(batch is not None), device=accelerator.device)
        if int(accelerator.reduce(have, reduction="sum")) < accelerator.num_processes:
            return
        assert batch is not None
        yield batch


class _Maker:
    """Makes the sources of one run."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        tower: FrozenTower,
        head: DepthHead,
        size: tuple[int, int],
    ) -> None:
        self._config, self._accelerator, self._tower, self._size = config, accelerator, tower, size
        self._read = tower.reader(head, accelerator.autocast)
        self._canonical_focal = head.config.canonical_focal
        self._reading = Reading(
            workers=config.workers,
            bad_file_limit=config.bad_file_limit,
            pin_memory=accelerator.device.type == "cuda",
        )

    def source(self, data: Data, *, training: bool) -> TowerSource:
        config, accelerator = self._config, self._accelerator
        augment = config.augment if training else None
        maker = ViewMaker(self._tower.preprocessing, self._size, augment, config.seed)
        split = isinstance(data, StreamMixture) and data.is_split
        uneven = training and split and accelerator.num_processes > 1

        def load(epoch: int, start: int) -> Iterable[Batch]:
            plan = epoch_plan(config, accelerator, epoch, start, training=training)
            loader = make_loader(data, maker, plan, self._reading)
            return while_all_have_one(accelerator, loader) if uneven else loader

        length = None
        if isinstance(data, Mixture):
            plan = epoch_plan(config, accelerator, 0, 0, training=training)
            length = len(EpochOrder(plan, data.counts, data.repeats))
        return TowerSource(load, self._read, accelerator.device, self._canonical_focal, length)

    def pictures(self, data: Data | None) -> Callable[[int], Tensor]:
        preprocessing = self._tower.preprocessing
        maker = ViewMaker(preprocessing, self._size)

        def read(count: int) -> Tensor:
            assert data is not None
            plan = EpochPlan(batch_size=count, seed=0, epoch=0, drop_last=False, shuffle=False)
            reading = replace(self._reading, workers=0)
            pixels_P3HW = next(iter(make_loader(data, maker, plan, reading))).pixels_B3HW
            std_311 = torch.tensor(preprocessing.std).view(3, 1, 1)
            mean_311 = torch.tensor(preprocessing.mean).view(3, 1, 1)
            rgb_P3HW = F.interpolate(pixels_P3HW * std_311 + mean_311, self._size, mode="area")
            return (rgb_P3HW * 255).round().clamp(0, 255).to(torch.uint8)

        return read

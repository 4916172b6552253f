"""Sources of a run's batches: data sets through the tower, or through the token cache.

Axes: P pictures, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from clipdepth_plugin.data import (
    EpochPlan,
    Mixture,
    Reading,
    StreamMixture,
    make_loader,
)
from clipdepth_plugin.data.order import EpochOrder
from clipdepth_plugin.training.cached import cached_source, open_cache

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from clipdepth_plugin.training.batches import FeatureBatch, FeatureSource, SourceContext
    from clipdepth_plugin.training.progress import Tell

    Data = Mixture | StreamMixture


@dataclass(frozen=True)
class Sources:
    """The data of a run."""

    context: SourceContext
    train: FeatureSource
    validation: FeatureSource | None
    validation_data: Data | None

    def pictures(self, count: int) -> Tensor:
        """The first ``count`` validation pictures, (P, 3, H, W) uint8 at the output's size."""
        assert self.validation_data is not None
        context, preprocessing = self.context, self.context.tower.preprocessing
        plan = EpochPlan(batch_size=count, seed=0, epoch=0, drop_last=False, shuffle=False)
        reading = Reading(bad_file_limit=context.config.bad_file_limit)
        batches = make_loader(self.validation_data, context.maker(None, 0), plan, reading)
        std_311 = torch.tensor(preprocessing.std).view(3, 1, 1)
        mean_311 = torch.tensor(preprocessing.mean).view(3, 1, 1)
        pixels_P3HW = next(iter(batches)).pixels_B3HW * std_311 + mean_311
        rgb_P3HW = F.interpolate(pixels_P3HW, context.size, mode="area")
        return (rgb_P3HW * 255).round().clamp(0, 255).to(torch.uint8)


def make_sources(context: SourceContext, data: tuple[Data, Data | None], tell: Tell) -> Sources:
    """Makes the sources of batches, and fills the token cache where the run has one."""
    host = context.tower.host
    cache = None if context.config.cache is None else open_cache(context)
    if cache is None:
        host.to(context.device)

    def make(one: Data, *, training: bool) -> FeatureSource:
        if cache is None:
            return TowerSource(context, one, training=training)
        assert isinstance(one, Mixture)  # a config with streams has no cache
        return cached_source(context, cache, one, training=training, tell=tell)

    train = make(data[0], training=True)
    validation = None if data[1] is None else make(data[1], training=False)
    if cache is not None:
        host.to("cpu")
    return Sources(context, train, validation, data[1])


class TowerSource:
    """Batches from pictures, through the tower."""

    def __init__(self, context: SourceContext, data: Data, *, training: bool) -> None:
        """Prepares to read: shuffled and augmented in training, else in order and plain."""
        config = context.config
        self._context, self._data, self._training = context, data, training
        self._maker = context.maker(config.augment if training else None, config.seed)
        self._reading = Reading(
            workers=config.workers,
            bad_file_limit=config.bad_file_limit,
            pin_memory=context.device.type == "cuda",
        )

    def __len__(self) -> int:
        if not isinstance(self._data, Mixture):
            raise TypeError("a stream has no length")
        plan = self._context.plan(0, 0, training=self._training)
        return len(EpochOrder(plan, self._data.counts, self._data.repeats))

    def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
        """See ``FeatureSource``."""
        context = self._context
        plan = context.plan(epoch, start, training=self._training)
        for batch in make_loader(self._data, self._maker, plan, self._reading):
            moved = batch.to(context.device)
            features = context.read(moved.pixels_B3HW)
            yield context.batch(features, moved.depth_B1HW, moved.intrinsics_B4, moved.names)

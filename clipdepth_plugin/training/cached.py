"""A run's batches from its token cache: filling it, and which views an epoch takes.

Axes: B views, H W a depth map's size.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from clipdepth_plugin.data.ahead import map_ahead
from clipdepth_plugin.data.augment import is_flipped, mixed_seed, sample_generator
from clipdepth_plugin.data.config import expand
from clipdepth_plugin.data.failures import BadFiles
from clipdepth_plugin.data.items import FLIPPED, PLAIN, SampleViews, ViewMaker
from clipdepth_plugin.data.order import Draw, EpochOrder
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.training.batches import FeatureBatch, camera_scale, epoch_plan
from clipdepth_plugin.training.cache_fill import fill_cache, sample_contents
from clipdepth_plugin.training.token_cache import (
    Key,
    Records,
    TokenCache,
    features_of,
    to_records,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.data.dataset import Mixture
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.progress import Reporter
    from clipdepth_plugin.training.settings import CacheSettings
    from clipdepth_plugin.training.tower import FrozenTower

logger = logging.getLogger(__name__)

_VIEWS_SEED = 0
"""Of the augmented views: not the run's, so that runs of all seeds share them."""

Pick = Callable[[int, int, int], int]
"""(epoch, sample, repeat in the epoch) -> number of a view."""


class CachedSource:
    """Reads tokens instead of pictures, in the order of training without a cache."""

    def __init__(
        self,
        read: Callable[[Sequence[Key]], Records],
        views: SampleViews,
        contents: Sequence[str | None],
        make_order: Callable[[int, int], EpochOrder],
        pick: Pick,
        finish: Callable[[list[str], Records], FeatureBatch],
        prefetch: int,
    ) -> None:
        """Keeps what it needs.

        Args:
            read: Keys -> records.
            views: The samples.
            contents: Content hash of each, None for bad ones; one at least is good.
            make_order: (epoch, start batch) -> this process's order.
            pick: Which view of a sample an epoch takes.
            finish: Samples' names, records -> the batch on its device.
            prefetch: Batches read ahead.
        """
        self._read, self._views, self._contents = read, views, contents
        self._make_order, self._pick, self._finish = make_order, pick, finish
        self._prefetch = prefetch

    def __len__(self) -> int:
        return len(self._make_order(0, 0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """See ``FeatureSource``."""
        order, threads = self._make_order(epoch, start), min(self._prefetch, 4)
        load = partial(self._load, epoch)
        for names, records in map_ahead(load, order, threads=threads, ahead=self._prefetch):
            yield self._finish(names, records)

    def _load(self, epoch: int, draws: Sequence[Draw]) -> tuple[list[str], Records]:
        keys, names = [], []
        for draw in draws:
            index, content = self._readable(draw.index)
            view = self._pick(epoch, index, draw.repeat)
            keys.append(Key(content, self._views.view_key(index, view)))
            names.append(self._views.name(index))
        return names, self._read(keys)

    def _readable(self, index: int) -> tuple[int, str]:
        """The sample, or the next one that is not bad, as the loader replaces it."""
        while (content := self._contents[index]) is None:
            index = (index + 1) % len(self._contents)
        return index, content


class CachedRun:
    """A run's token cache, opened; makes sources of batches and fills it for them."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        tower: FrozenTower,
        head: DepthHead,
        size: tuple[int, int],
        reporter: Reporter,
    ) -> None:
        """Opens the cache that the config names, or makes it.

        Raises:
            TrainingError: It was made by other weights, preprocessing or settings; says which.
            DataError: Its folder has an environment variable that is not set.
        """
        assert config.cache is not None
        self._config, self._settings = config, config.cache
        self._accelerator, self._tower, self._reporter = accelerator, tower, reporter
        self._size, self._head = size, head.config
        (height, width), patch = tower.preprocessing.size, tower.tower.patch_size
        self._grid = (height // patch[0], width // patch[1])
        identity = self._identity(patch)
        with accelerator.main_process_first():
            self.cache = TokenCache(Path(expand(config.cache.folder)), identity)
        self._read_tower = tower.reader(head, accelerator.autocast)

    def source(self, data: Mixture, *, training: bool) -> CachedSource:
        """A source of batches from the cache, filled first with what is missing.

        Call it in every process; each runs the tower for its part.

        Args:
            data: The samples.
            training: Shuffled and in several views; else in order and plain.

        Raises:
            TrainingError: No room on the disk.
            DataError: More samples are bad than the config allows for.
        """
        config, accelerator = self._config, self._accelerator
        maker = ViewMaker(self._tower.preprocessing, self._size, config.augment, _VIEWS_SEED)
        views = SampleViews(data, maker)
        numbers, pick = choose_views(config, self._settings, views) if training else _PLAIN
        contents = self._contents(views)
        self._fill(views, contents, numbers)

        def make_order(epoch: int, start: int) -> EpochOrder:
            plan = epoch_plan(config, accelerator, epoch, start, training=training)
            return EpochOrder(plan, data.counts, data.repeats)

        read = partial(self.cache.read, pinned=accelerator.device.type == "cuda")
        prefetch = self._settings.prefetch
        return CachedSource(read, views, contents, make_order, pick, self._finish, prefetch)

    def _identity(self, patch: tuple[int, int]) -> dict[str, Any]:
        """Everything but the samples that a cached token depends on."""
        head, grid = self._head, self._grid
        pixels = [side * of for side, of in zip(grid, patch, strict=True)]
        return {
            "format": 2,
            "tower weights": self._tower.fingerprint(),
            "preprocessing": dataclasses.asdict(self._tower.preprocessing),
            "levels": head.levels,
            "context": head.context if head.film else None,
            "grid": grid,
            "width": self._tower.tower.width,
            "output size": self._size,
            "dtype": self._settings.dtype,
            "precision": self._config.precision,
            "pixels": pixels if head.reads_pixels else None,
        }

    def _contents(self, views: SampleViews) -> list[str | None]:
        """Content hash of every sample, None for bad ones; each process reads its part."""
        accelerator, config = self._accelerator, self._config
        mine = range(accelerator.process_index, len(views), accelerator.num_processes)
        bad = BadFiles(config.bad_file_limit)
        found = sample_contents(views, mine, bad, config.workers, self._reporter.doing)
        contents: list[str | None] = [None] * len(views)
        for index, content in gather_object(list(zip(mine, found, strict=True))):
            contents[index] = content
        if not any(contents):
            raise DataError("no sample of the set can be read")
        return contents

    def _fill(
        self, views: SampleViews, contents: Sequence[str | None], numbers: Sequence[int]
    ) -> None:
        """Runs the tower for every view that is not there; each process for its part."""
        accelerator, config = self._accelerator, self._config
        wanted = {
            Key(content, views.view_key(index, view)): (index, view)
            for index, content in enumerate(contents)
            if content is not None
            for view in numbers
        }
        missing = [(key, *place) for key, place in wanted.items() if key not in self.cache]
        if not missing:
            return
        self._tower.host.to(accelerator.device)
        fill_cache(
            self.cache,
            views,
            missing[accelerator.process_index :: accelerator.num_processes],
            self._compute,
            batch_size=config.micro_batch // accelerator.num_processes,
            workers=config.workers,
            tell=self._reporter.doing,
        )
        accelerator.wait_for_everyone()
        self.cache.refresh()

    def _compute(self, pixels_B3HW: Tensor, depth_B1HW: Tensor, intrinsics_B4: Tensor) -> Records:
        dtype, levels = getattr(torch, self._settings.dtype), self._head.levels
        features = self._read_tower(pixels_B3HW)
        return to_records(features, depth_B1HW, intrinsics_B4, levels=levels, dtype=dtype)

    def _finish(self, names: list[str], records: Records) -> FeatureBatch:
        device = self._accelerator.device
        depth_B1HW = records.pop("depth").to(device, non_blocking=True)
        intrinsics_B4 = records.pop("intrinsics").to(device, non_blocking=True)
        scale_B = camera_scale(intrinsics_B4, self._head.canonical_focal, names)
        features = features_of(records, self._head.levels, self._grid, device)
        return FeatureBatch(features, depth_B1HW, depth_B1HW > 0, scale_B, names)


_PLAIN: tuple[tuple[int, ...], Pick] = ((PLAIN,), lambda *_: PLAIN)


def choose_views(
    config: TrainConfig, settings: CacheSettings, samples: SampleViews
) -> tuple[tuple[int, ...], Pick]:
    """The views that are cached of training samples, and which of them an epoch takes.

    With ``flip`` a sample is mirrored in the same epochs as without a cache.
    """
    seed, views = config.seed, settings.views
    augments = [config.augment, *(one.augment for one in config.data.train)]
    if isinstance(views, int):
        return (
            tuple(range(views)),
            lambda epoch, index, repeat: mixed_seed("view", seed, epoch, index, repeat) % views,
        )
    if config.augment is None or not any(one and one.flip > 0 for one in augments):
        return _PLAIN
    logger.info("cache.views is flip: of augment only the flip is used")
    return (PLAIN, FLIPPED), lambda epoch, index, repeat: int(
        is_flipped(samples.augment_of(index), sample_generator(seed, epoch, index, repeat))
    )

"""A run's batches from its token cache: opening, filling, and which views an epoch takes.

Axes: B views.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from clipdepth_plugin.data.config import expand
from clipdepth_plugin.data.dataset import Mixture
from clipdepth_plugin.data.failures import BadFiles
from clipdepth_plugin.data.items import SampleViews, ViewMaker
from clipdepth_plugin.data.order import EpochOrder, EpochPlan
from clipdepth_plugin.errors import DataError, TrainingError
from clipdepth_plugin.training.cache_build import (
    build_cache,
    cache_identity,
    sample_contents,
)
from clipdepth_plugin.training.cache_files import CacheFiles, Key
from clipdepth_plugin.training.cache_layout import RecordLayout
from clipdepth_plugin.training.cache_plan import (
    PLAIN_VIEW,
    CachePlan,
    ViewChoice,
    choose_views,
)
from clipdepth_plugin.training.cache_source import CachedSource

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clipdepth_plugin.data.stream import StreamMixture
    from clipdepth_plugin.head import DepthHead
    from clipdepth_plugin.training.cache_build import Read, Tell
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.settings import CacheSettings
    from clipdepth_plugin.training.tower import FrozenTower

_VIEWS_SEED = 0
"""Of the augmented views: not the run's, so that runs of all seeds share them."""


@dataclass(frozen=True)
class OpenCache:
    """A cache and the run that uses it.

    Attributes:
        files: The cache's files.
        settings: Its part of the config.
        config: The run's config.
        accelerator: Its processes.
        tower: What fills it.
        read: Pixels -> features.
        size: (H, W) of the depth maps.
        canonical_focal: The head's.
    """

    files: CacheFiles
    settings: CacheSettings
    config: TrainConfig
    accelerator: Accelerator
    tower: FrozenTower
    read: Read
    size: tuple[int, int]
    canonical_focal: float | None


def open_cache(
    config: TrainConfig,
    accelerator: Accelerator,
    tower: FrozenTower,
    head: DepthHead,
    size: tuple[int, int],
) -> OpenCache:
    """Opens the cache that a config names, or makes it.

    Raises:
        TrainingError: It was made by other weights, preprocessing or settings; says which.
        DataError: Its folder has an environment variable that is not set.
    """
    settings = config.cache
    assert settings is not None
    (height, width), patch = tower.preprocessing.size, tower.tower.patch_size
    grid = (height // patch[0], width // patch[1])
    layout = RecordLayout(
        levels=head.config.levels,
        grid=grid,
        width=tower.tower.width,
        has_context=head.config.film,
        size=size,
        dtype=getattr(torch, settings.dtype),
        pixel_size=(grid[0] * patch[0], grid[1] * patch[1]) if head.reads_pixels else None,
    )
    context = head.config.context if head.config.film else None
    identity = cache_identity(tower, layout, context, config.precision)
    folder = Path(expand(settings.folder))
    with accelerator.main_process_first():
        files = CacheFiles.open(folder, identity, layout)
    read = tower.reader(head, accelerator.autocast)
    focal = head.config.canonical_focal
    return OpenCache(files, settings, config, accelerator, tower, read, size, focal)


def make_cached_source(
    cache: OpenCache, data: Mixture | StreamMixture, *, training: bool, tell: Tell
) -> CachedSource:
    """A source of batches from the cache, filled first with what is missing.

    To be called in every process; each runs the tower for its part.

    Args:
        cache: The cache.
        data: The samples.
        training: Shuffled and in several views; else in order and plain.
        tell: Hears of the progress.

    Raises:
        TrainingError: A stream, or no room on the disk.
        DataError: More samples are bad than the config allows for.
    """
    if not isinstance(data, Mixture):
        raise TrainingError(
            "cache: a stream's samples have no fixed place, so their tokens can't be kept; train "
            "without a cache"
        )
    config, accelerator = cache.config, cache.accelerator
    tell = tell if accelerator.is_main_process else _untold
    maker = ViewMaker(cache.tower.preprocessing, cache.size, config.augment, _VIEWS_SEED)
    views = SampleViews(data, maker)
    choice = choose_views(config, cache.settings.views, views) if training else PLAIN_VIEW
    contents = _contents(cache, views, choice, tell)
    _fill(cache, views, contents, choice, tell)
    make_order = _order_maker(cache, data, training=training)
    return CachedSource(
        cache.files,
        CachePlan(make_order, contents, choice, views),
        len(make_order(0, 0)),
        accelerator.device,
        cache.canonical_focal,
        cache.settings.prefetch,
    )


def _order_maker(
    cache: OpenCache, data: Mixture, *, training: bool
) -> Callable[[int, int], EpochOrder]:
    """(epoch, start batch) -> the order that the loader without a cache has."""
    make_plan = functools.partial(
        EpochPlan,
        batch_size=cache.config.micro_batch // cache.accelerator.num_processes,
        seed=cache.config.seed,
        shuffle=training,
        drop_last=training,
        rank=cache.accelerator.process_index,
        world_size=cache.accelerator.num_processes,
    )

    def make_order(epoch: int, start: int) -> EpochOrder:
        plan = make_plan(epoch=epoch, start_batch=start)
        return EpochOrder(plan, data.counts, data.repeats)

    return make_order


def _contents(
    cache: OpenCache, views: SampleViews, choice: ViewChoice, tell: Tell
) -> list[str | None]:
    """Content hash of every sample, None for bad ones; each process reads its part."""
    rank, processes = cache.accelerator.process_index, cache.accelerator.num_processes
    mine = range(rank, len(views), processes)
    found = sample_contents(
        cache.files,
        views,
        mine,
        verify=cache.settings.verify,
        chosen=choice.views,
        bad=BadFiles(cache.config.bad_file_limit),
        workers=cache.config.workers,
        tell=tell,
    )
    contents: list[str | None] = [None] * len(views)
    for index, content in gather_object(list(zip(mine, found, strict=True))):
        contents[index] = content
    if not any(contents):
        raise DataError("no sample of the set can be read")
    return contents


def _fill(
    cache: OpenCache,
    views: SampleViews,
    contents: Sequence[str | None],
    choice: ViewChoice,
    tell: Tell,
) -> None:
    """Runs the tower for every view that is not there; each process for its part."""
    wanted = {
        Key(content, views.view_key(index, view)): (index, view)
        for index, content in enumerate(contents)
        if content is not None
        for view in choice.views
    }
    missing = [(key, *place) for key, place in wanted.items() if key not in cache.files]
    accelerator, config = cache.accelerator, cache.config
    if missing:
        cache.tower.host.to(accelerator.device)
        build_cache(
            cache.files,
            views,
            missing[accelerator.process_index :: accelerator.num_processes],
            cache.read,
            batch_size=max(config.micro_batch // accelerator.num_processes, 1),
            workers=config.workers,
            tell=tell,
        )
        accelerator.wait_for_everyone()
        cache.files.refresh()


def _untold(what: str, done: int, total: int) -> None:
    """Tells nobody: only the main process reports."""

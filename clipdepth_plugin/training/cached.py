"""A run's batches from its token cache: filling it, and which views an epoch takes.

Axes: B views, H W a depth map's size.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from clipdepth_plugin.data.augment import is_flipped, sample_generator
from clipdepth_plugin.data.config import expand
from clipdepth_plugin.data.items import FLIPPED, PLAIN, SampleViews, full_weights
from clipdepth_plugin.data.order import Draw, EpochOrder
from clipdepth_plugin.data.reading import map_ahead
from clipdepth_plugin.data.seeds import mixed_seed
from clipdepth_plugin.features import Run
from clipdepth_plugin.training.batches import Truths
from clipdepth_plugin.training.cache_fill import fill_cache, filling, sample_contents
from clipdepth_plugin.training.records import WEIGHT, Records, features_of
from clipdepth_plugin.training.token_cache import Key, TokenCache, check

if TYPE_CHECKING:
    from torch import Tensor

    from clipdepth_plugin.data.dataset import Mixture
    from clipdepth_plugin.training.batches import FeatureBatch, SourceContext
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.progress import Doing

logger = logging.getLogger(__name__)

_VIEWS_SEED = 0
"""Of the augmented views: not the run's, so that runs of all seeds share them."""

Pick = Callable[[int, int, int], int]
"""(epoch, sample, repeat in the epoch) -> number of a view."""

_PLAIN: tuple[tuple[int, ...], Pick] = ((PLAIN,), lambda *_: PLAIN)


@dataclass(frozen=True)
class CachedSource:
    """Reads tokens instead of pictures, in the order of training without a cache."""

    context: SourceContext
    cache: TokenCache
    data: Mixture
    views: SampleViews
    contents: Sequence[str | None]
    pick: Pick
    training: bool

    def __len__(self) -> int:
        return len(self._order(0, 0))

    def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
        """See ``FeatureSource``."""
        context = self.context
        load, order = partial(self._load, epoch), self._order(epoch, start)
        for names, parts, stored in map_ahead(load, order, threads=4, ahead=4):
            on = [
                {name: x.to(context.device, non_blocking=True) for name, x in records.items()}
                for records in stored
            ]
            parts_B = torch.tensor(parts, device=context.device)
            runs = [self._run(records) for records in on]
            maps = (_joined(on, "depth"), _joined(on, "intrinsics"), _weights(on))
            truth = Truths(*maps, self.data.relative)
            yield context.batch(runs, truth, names, parts_B, training=self.training)

    def _run(self, records: Records) -> Run:
        tower = self.context.tower
        grid, pixel_size = tower.grid, tower.preprocessing.size
        if "size" in records:
            h, w, height, width = records["size"][0].tolist()
            grid, pixel_size = (h, w), (height, width)
        return Run(features_of(records, self.context.head.levels, grid), pixel_size)

    def _order(self, epoch: int, start: int) -> EpochOrder:
        plan = self.context.plan(epoch, start, training=self.training)
        return EpochOrder(plan, self.data.counts, self.data.repeats)

    def _load(
        self, epoch: int, draws: Sequence[Draw]
    ) -> tuple[list[str], list[int], list[Records]]:
        """Names, numbers of sets, and records, neighbours of one size together."""
        keys, names, parts = [], [], []
        for draw in draws:
            index, content = self._readable(draw.index)
            view = self.pick(epoch, index, draw.repeat)
            keys.append(Key(content, self.views.view_key(index, view)))
            names.append(self.views.name(index))
            parts.append(self.data.part_of(index))
        pinned = self.context.device.type == "cuda"
        alike = itertools.groupby(keys, key=self.cache.size_of)
        return names, parts, [self.cache.read([*some], pinned=pinned) for _, some in alike]

    def _readable(self, index: int) -> tuple[int, str]:
        """The sample, or the next one that is not bad, as the loader replaces it."""
        while (content := self.contents[index]) is None:
            index = (index + 1) % len(self.contents)
        return index, content


def _joined(stored: Sequence[Records], name: str) -> Tensor:
    """A tensor of all records."""
    if len(stored) == 1:
        return stored[0][name]
    return torch.cat([records[name] for records in stored])


def _weights(stored: Sequence[Records]) -> Tensor | None:
    """The weights of all records; None where none has one."""
    given = [records.get(WEIGHT) for records in stored]
    weights = full_weights(given, [records["depth"] for records in stored])
    return None if weights is None else torch.cat(weights)


def open_cache(context: SourceContext) -> TokenCache:
    """Opens the cache that the config names, or makes it."""
    config, head, tower = context.config, context.head, context.tower
    assert config.cache is not None
    fixed = tower.preprocessing.fixed_size
    pixels = [side * of for side, of in zip(tower.grid, tower.tower.patch_size, strict=True)]
    identity = {  # everything but the samples that a cached token depends on
        "format": 4,
        "tower weights": tower.fingerprint(),
        "preprocessing": dataclasses.asdict(tower.preprocessing),
        "levels": head.levels,
        "context": head.context if head.film else None,
        "grid": tower.grid if fixed else "of each view",
        "width": tower.tower.width,
        "output size": context.size,
        "dtype": config.cache.dtype,
        "precision": config.precision,
        "pixels": (pixels if fixed else "of each view") if head.reads_pixels else None,
    }
    with context.accelerator.main_process_first():
        return TokenCache(Path(expand(config.cache.folder)), identity)


def cached_source(
    context: SourceContext, cache: TokenCache, data: Mixture, *, training: bool, doing: Doing
) -> CachedSource:
    """A source of batches from the cache, filled first with what is missing.

    Call it in every process; each runs the tower for its part.
    """
    views = SampleViews(data, context.maker(context.config.augment, _VIEWS_SEED))
    numbers, pick = choose_views(context.config, views) if training else _PLAIN
    contents = sample_contents(context, views, doing)
    wanted = {
        Key(content, views.view_key(index, view)): (index, view)
        for index, content in enumerate(contents)
        if content is not None
        for view in numbers
    }
    if _anywhere(context, any(key not in cache for key in wanted)):
        with filling(context, cache):
            missing = [(key, *place) for key, place in wanted.items() if key not in cache]
            fill_cache(context, cache, views, missing, doing)
    _check_shards(context, cache, wanted, doing)
    return CachedSource(context, cache, data, views, contents, pick, training)


def _anywhere(context: SourceContext, mine: bool) -> bool:
    """Whether it is so in any process: each opened the cache at a moment of its own."""
    return any(gather_object([mine])) if context.accelerator.num_processes > 1 else mine


def _check_shards(
    context: SourceContext, cache: TokenCache, keys: Iterable[Key], doing: Doing
) -> None:
    """Holds the shards of these records against their checksums, each in one process."""
    accelerator = context.accelerator
    mine = cache.unchecked(keys)[accelerator.process_index :: accelerator.num_processes]
    for done, _ in enumerate(map_ahead(check, mine, threads=4, ahead=4), 1):
        doing("checking the cache", done, len(mine))
    accelerator.wait_for_everyone()


def choose_views(config: TrainConfig, samples: SampleViews) -> tuple[tuple[int, ...], Pick]:
    """The views that are cached of training samples, and which of them an epoch takes.

    With ``flip`` a sample is mirrored in the same epochs as without a cache.
    """
    assert config.cache is not None
    if config.augment is not None and config.augment.parts and not config.cache.augmented:
        logger.warning(
            "cache.views: %s: %s of augment are not applied, as the cache has the image and its "
            "mirror image at the most; a number from 3 on has them",
            config.cache.views,
            ", ".join(config.augment.parts),
        )
    seed, views = config.seed, config.cache.views
    augments = [config.augment, *(one.augment for one in config.data.train)]
    if isinstance(views, int):
        return (
            tuple(range(views)),
            lambda epoch, index, repeat: mixed_seed("view", seed, epoch, index, repeat) % views,
        )
    if config.augment is None or not any(one and one.flip > 0 for one in augments):
        return _PLAIN
    return (PLAIN, FLIPPED), lambda epoch, index, repeat: int(
        is_flipped(samples.augment_of(index), sample_generator(seed, epoch, index, repeat))
    )

"""Which cached view of which sample makes up which batch of an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipdepth_plugin.data.augment import is_flipped, mixed_seed, sample_generator
from clipdepth_plugin.data.items import FLIPPED, PLAIN
from clipdepth_plugin.training.cache_files import Key
from clipdepth_plugin.training.cache_source import CachedBatch

if TYPE_CHECKING:
    from clipdepth_plugin.data.items import SampleViews
    from clipdepth_plugin.data.order import EpochOrder
    from clipdepth_plugin.training.config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewChoice:
    """The views that are cached of each sample, and which of them an epoch takes.

    Attributes:
        views: Their numbers.
        pick: (epoch, sample, repeat in the epoch) -> one of them.
    """

    views: tuple[int, ...]
    pick: Callable[[int, int, int], int]


PLAIN_VIEW = ViewChoice((PLAIN,), lambda *_: PLAIN)


def choose_views(config: TrainConfig, views: str | int, samples: SampleViews) -> ViewChoice:
    """The views of training samples, as ``CacheSettings.views`` says.

    With ``flip`` a sample is mirrored in the very epochs in which it would be without a cache.
    """
    seed, augments = config.seed, [config.augment, *(one.augment for one in config.data.train)]
    if isinstance(views, int):
        return ViewChoice(
            tuple(range(views)),
            lambda epoch, index, repeat: mixed_seed("view", seed, epoch, index, repeat) % views,
        )
    if config.augment is None or not any(one and one.flip > 0 for one in augments):
        return PLAIN_VIEW
    logger.info("cache.views is flip: of augment only the flip is used")
    return ViewChoice(
        (PLAIN, FLIPPED),
        lambda epoch, index, repeat: int(
            is_flipped(samples.augment_of(index), sample_generator(seed, epoch, index, repeat))
        ),
    )


class CachePlan:
    """The records of each batch, in the order that training without a cache has."""

    def __init__(
        self,
        make_order: Callable[[int, int], EpochOrder],
        contents: Sequence[str | None],
        choice: ViewChoice,
        views: SampleViews,
    ) -> None:
        """Keeps what it needs.

        Args:
            make_order: (epoch, start batch) -> this process's order.
            contents: Content hash of each sample, None for bad ones; one at least is good.
            choice: Which views.
            views: The samples.
        """
        self._make_order = make_order
        self._contents = contents
        self._choice = choice
        self._views = views

    def __call__(self, epoch: int, start: int) -> Iterator[CachedBatch]:
        """The batches of an epoch from number ``start`` on."""
        for draws in self._make_order(epoch, start):
            keys, names = [], []
            for draw in draws:
                index, content = self._readable(draw.index)
                view = self._choice.pick(epoch, index, draw.repeat)
                keys.append(Key(content, self._views.view_key(index, view)))
                names.append(self._views.name(index))
            yield CachedBatch(keys, names)

    def _readable(self, index: int) -> tuple[int, str]:
        """The sample, or the next one that is not bad, as the loader replaces it."""
        while (content := self._contents[index]) is None:
            index = (index + 1) % len(self._contents)
        return index, content

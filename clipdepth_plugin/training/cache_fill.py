"""Fills a token cache: hashes every sample, and runs the tower for missing views.

Axes: B views, H W pixels, h w a depth map's size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipdepth_plugin.data.failures import BadFiles, Failure
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.training.token_cache import Key, Records, TokenCache

if TYPE_CHECKING:
    from clipdepth_plugin.data.items import SampleViews

logger = logging.getLogger(__name__)

Tell = Callable[[str, int, int], None]


def sample_contents(
    views: SampleViews, indices: Sequence[int], bad: BadFiles, workers: int, tell: Tell
) -> list[str | None]:
    """Content hashes of samples; None for those that can't be read.

    Args:
        views: The samples.
        indices: Which of them.
        bad: Counts those that can't be read.
        workers: Processes that read.
        tell: Is called with the progress.

    Raises:
        DataError: Too many can't be read.
    """
    contents: list[str | None] = []
    loader = DataLoader(_Contents(views, indices), None, num_workers=workers, generator=_own())
    for index, (content, problem) in zip(indices, loader, strict=True):
        contents.append(content)
        bad.add([] if problem is None else [Failure(views.name(index), problem)])
        tell("reading the data", len(contents), len(indices))
    return contents


def fill_cache(
    cache: TokenCache,
    views: SampleViews,
    missing: Sequence[tuple[Key, int, int]],
    read: Callable[[Tensor, Tensor, Tensor], Records],
    *,
    batch_size: int,
    workers: int,
    tell: Tell,
) -> None:
    """Runs the tower and stores its tokens.

    Args:
        cache: The cache.
        views: The samples.
        missing: (key, sample, view) of what to compute.
        read: Pixels (B, 3, H, W), depth (B, 1, h, w), intrinsics (B, 4) -> records.
        batch_size: Views in one pass of the tower.
        workers: Processes that read.
        tell: Is called with the progress.

    Raises:
        TrainingError: No room on the disk; what was finished is kept.
        DataError: The files of a sample have changed since it was hashed.
    """
    logger.info("cache %s: %d views to compute", cache.folder, len(missing))
    done = 0
    pending = _Pending(views, missing)
    for batch in DataLoader(pending, batch_size, num_workers=workers, generator=_own()):
        keys = [key for key, _, _ in missing[done : done + len(batch[0])]]
        cache.add(keys, read(*batch))
        done += len(keys)
        tell("running the tower", done, len(missing))
    cache.flush()


class _Contents(Dataset[tuple[str | None, str | None]]):
    def __init__(self, views: SampleViews, indices: Sequence[int]) -> None:
        self._views, self._indices = views, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, row: int) -> tuple[str | None, str | None]:
        try:
            return self._views.content(self._indices[row]), None
        except ClipDepthError as error:
            return None, str(error)


class _Pending(Dataset[tuple[Tensor, Tensor, Tensor]]):
    def __init__(self, views: SampleViews, missing: Sequence[tuple[Key, int, int]]) -> None:
        self._views, self._missing = views, missing

    def __len__(self) -> int:
        return len(self._missing)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        key, index, view = self._missing[row]
        return self._views.view(index, view, key.content)


def _own() -> torch.Generator:
    """A generator that leaves the caller's random state alone."""
    return torch.Generator()

"""Fills a token cache: hashes every sample, and runs the tower for missing views.

Axes: B views, H W pixels, h w a depth map's size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
    loader: DataLoader[Any] = DataLoader(
        indices,  # type: ignore[arg-type]
        None,
        num_workers=workers,
        collate_fn=partial(_content, views),
        generator=_own(),
    )
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
    loader: DataLoader[Any] = DataLoader(
        missing,  # type: ignore[arg-type]
        batch_size,
        num_workers=workers,
        collate_fn=partial(_loaded, views),
        generator=_own(),
    )
    for keys, tensors in loader:
        cache.add(keys, read(*tensors))
        done += len(keys)
        tell("running the tower", done, len(missing))
    cache.flush()


def _content(views: SampleViews, index: int) -> tuple[str | None, str | None]:
    """A sample's content hash, or why it can't be read."""
    try:
        return views.content(index), None
    except ClipDepthError as error:
        return None, str(error)


def _loaded(
    views: SampleViews, rows: Sequence[tuple[Key, int, int]]
) -> tuple[list[Key], list[Tensor]]:
    """The keys of B views, and their stacked pixels, depth and intrinsics."""
    found = [views.view(index, view, key.content) for key, index, view in rows]
    return [key for key, _, _ in rows], [torch.stack(one) for one in zip(*found, strict=True)]


def _own() -> torch.Generator:
    """A generator that leaves the caller's random state alone."""
    return torch.Generator()

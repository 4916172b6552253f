"""Fills a token cache: hashes every sample, and runs the tower for missing views.

Axes: B views, H W pixels, h w a depth map's size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from clipdepth_plugin.data.reading import BadFiles, Failure
from clipdepth_plugin.errors import ClipDepthError, DataError
from clipdepth_plugin.training.token_cache import Key, TokenCache, to_records

if TYPE_CHECKING:
    from clipdepth_plugin.data.items import SampleViews
    from clipdepth_plugin.training.batches import SourceContext
    from clipdepth_plugin.training.progress import Doing

logger = logging.getLogger(__name__)


def sample_contents(context: SourceContext, views: SampleViews, doing: Doing) -> list[str | None]:
    """Content hash of every sample, None for bad ones; each process reads its part."""
    accelerator, bad = context.accelerator, BadFiles(context.config.bad_file_limit)
    mine = range(accelerator.process_index, len(views), accelerator.num_processes)
    found = []
    loader: DataLoader[Any] = DataLoader(
        mine,  # type: ignore[arg-type]
        None,
        num_workers=context.config.workers,
        collate_fn=partial(_content, views),
        generator=torch.Generator(),  # so that the caller's random state is left alone
    )
    for index, (content, problem) in zip(mine, loader, strict=True):
        found.append((index, content))
        bad.add([] if problem is None else [Failure(views.name(index), problem)])
        doing("reading the data", len(found), len(mine))
    contents: list[str | None] = [None] * len(views)
    for index, content in gather_object(found):
        contents[index] = content
    if not any(contents):
        raise DataError("no sample of the set can be read")
    return contents


def fill_cache(
    context: SourceContext,
    cache: TokenCache,
    views: SampleViews,
    missing: Sequence[tuple[Key, int, int]],
    doing: Doing,
) -> None:
    """Runs the tower for this process's part of ``missing``: (key, sample, view)."""
    config, accelerator = context.config, context.accelerator
    assert config.cache is not None
    levels, dtype = context.head.levels, getattr(torch, config.cache.dtype)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    logger.info("cache %s: %d views to compute", cache.folder, len(mine))
    context.tower.host.to(context.device)
    loader: DataLoader[Any] = DataLoader(
        mine,  # type: ignore[arg-type]
        context.batch_size,
        num_workers=config.workers,
        collate_fn=partial(_loaded, views),
        generator=torch.Generator(),
    )
    done = 0
    for keys, (pixels_B3HW, depth_B1hw, intrinsics_B4) in loader:
        features = context.read(pixels_B3HW)
        cache.add(keys, to_records(features, depth_B1hw, intrinsics_B4, levels=levels, dtype=dtype))
        done += len(keys)
        doing("running the tower", done, len(mine))
    cache.flush()
    accelerator.wait_for_everyone()
    cache.refresh()


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

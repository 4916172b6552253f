"""Fills a token cache: hashes every sample, and runs the tower for missing views.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader

from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.data.items import collate
from clipdepth_plugin.data.reading import BadFiles, Failure
from clipdepth_plugin.errors import ClipDepthError, DataError, TrainingError
from clipdepth_plugin.files.atomic import remove_leftovers
from clipdepth_plugin.files.locks import HeldError, holding
from clipdepth_plugin.training.records import to_records
from clipdepth_plugin.training.token_cache import Key, TokenCache

if TYPE_CHECKING:
    from clipdepth_plugin.data.items import Batch, SampleViews
    from clipdepth_plugin.training.batches import SourceContext
    from clipdepth_plugin.training.progress import Doing

logger = logging.getLogger(__name__)

_WAIT = 0.5  # seconds between looks at whether another run has ended


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


@contextlib.contextmanager
def filling(context: SourceContext, cache: TokenCache) -> Iterator[None]:
    """Inside, this run alone adds to the cache, and knows all shards; waits for other runs."""
    with contextlib.ExitStack() as stack:
        told = False
        # Not a lock that blocks: the other processes would wait for the first beyond their limit.
        while (holder := _try_to_hold(stack, context, cache)) is not None:
            if not told:
                logger.warning("cache %s: %s fills it; waiting for its end", cache.folder, holder)
            told = True
            time.sleep(_WAIT)
        cache.refresh()
        context.accelerator.wait_for_everyone()  # no process may see what another one adds already
        yield


def _try_to_hold(
    stack: contextlib.ExitStack, context: SourceContext, cache: TokenCache
) -> str | None:
    """Takes the cache's lock in the first process; who else holds it, in all processes."""
    holder: list[str | None] = [None]
    if context.accelerator.is_main_process:
        try:
            stack.enter_context(holding(cache.folder))
            remove_leftovers(cache.folder)
        except HeldError as held:
            holder = [str(held)]
        except OSError as error:
            raise TrainingError(f"cache {cache.folder}: can't be written ({error})") from error
    if context.accelerator.num_processes > 1:
        broadcast_object_list(holder)
    return holder[0]


def fill_cache(
    context: SourceContext,
    cache: TokenCache,
    views: SampleViews,
    missing: Sequence[tuple[Key, int, int]],
    doing: Doing,
) -> None:
    """Runs the tower for this process's part of ``missing``: (key, sample, view).

    Records get all that the cache holds, also what this run does not read.
    """
    config, accelerator = context.config, context.accelerator
    assert config.cache is not None
    levels, dtype = cache.identity["levels"], getattr(torch, config.cache.dtype)
    whole = Wanted(
        context.tower.tower,
        tuple(levels),
        cache.identity["context"],
        pixels=cache.identity["pixels"] is not None,
    )
    read = context.tower.reader(whole, accelerator.autocast)
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
    own_sizes = not context.tower.preprocessing.fixed_size
    for keys, batch in loader:
        start = 0
        for run in read(batch.views):
            rows = slice(start, start + run.features.batch)
            start = rows.stop
            weight_B1HW = None if batch.weight_B1HW is None else batch.weight_B1HW[rows]
            truth = (batch.depth_B1HW[rows], batch.intrinsics_B4[rows], weight_B1HW)
            records = to_records(run.features, *truth, levels=levels, dtype=dtype)
            if own_sizes:
                records["size"] = torch.tensor([[*run.features.grid, *run.pixel_size]])
                records["size"] = records["size"].repeat(run.features.batch, 1)
            cache.add(keys[rows], records)
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


def _loaded(views: SampleViews, rows: Sequence[tuple[Key, int, int]]) -> tuple[list[Key], Batch]:
    """The keys of views, and the views as a batch."""
    found = [views.view(index, view, key.content) for key, index, view in rows]
    return [key for key, _, _ in rows], collate(found)

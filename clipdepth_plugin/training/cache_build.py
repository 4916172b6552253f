"""Fills a token cache: hashes every sample, and runs the tower for views that are not there yet.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipdepth_plugin.data.failures import BadFiles, Failure
from clipdepth_plugin.errors import ClipDepthError, TrainingError
from clipdepth_plugin.training.cache_files import CacheFiles, Key, ShardWriter
from clipdepth_plugin.training.cache_layout import RecordLayout

if TYPE_CHECKING:
    from clipdepth_plugin.data.items import SampleViews
    from clipdepth_plugin.features import TowerFeatures
    from clipdepth_plugin.training.tower import FrozenTower

logger = logging.getLogger(__name__)

Read = Callable[[Tensor], "TowerFeatures"]
Tell = Callable[[str, int, int], None]


def tower_fingerprint(tower: FrozenTower) -> str:
    """Hash of every parameter and buffer of the tower: what is computed depends on all of them."""
    digests = []
    for x in (*tower.tower.module.parameters(), *tower.tower.module.buffers()):
        data = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digests.append(hashlib.sha256(data.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def cache_identity(
    tower: FrozenTower, layout: RecordLayout, context: str | None, precision: str
) -> dict[str, Any]:
    """Everything but the samples that a cached token depends on, in types that JSON has."""
    return {
        "format": 1,
        "tower weights": tower_fingerprint(tower),
        "preprocessing": json.loads(json.dumps(dataclasses.asdict(tower.preprocessing))),
        "levels": list(layout.levels),
        "context": context,
        "grid": list(layout.grid),
        "width": layout.width,
        "output size": list(layout.size),
        "dtype": str(layout.dtype).removeprefix("torch."),
        "precision": precision,
        # Only where there are any, so that caches of before there were any stay good.
        **({} if layout.pixel_size is None else {"pixels": list(layout.pixel_size)}),
    }


def sample_contents(
    files: CacheFiles,
    views: SampleViews,
    indices: Sequence[int],
    *,
    verify: bool,
    chosen: Sequence[int],
    bad: BadFiles,
    workers: int,
    tell: Tell,
) -> list[str | None]:
    """Content hashes of samples; None for those that can't be read.

    Args:
        files: The cache.
        views: The samples.
        indices: Which of them.
        verify: Read and hash every one. False: a sample of which every chosen view was cached
            under its name, and read in the same way then, is taken to be unchanged.
        chosen: Views that will be wanted of each.
        bad: Counts those that can't be read.
        workers: Processes that read.
        tell: Hears of the progress.

    Raises:
        DataError: Too many can't be read.
    """
    known = {i: None if verify else _trusted(files, views, i, chosen) for i in indices}
    unknown = [index for index, content in known.items() if content is None]
    loader = DataLoader(_Contents(views, unknown), None, num_workers=workers, generator=_own())
    for done, (index, (content, problem)) in enumerate(zip(unknown, loader, strict=True), 1):
        known[index] = content
        bad.add([] if problem is None else [Failure(views.name(index), problem)])
        tell("reading the data", done, len(unknown))
    found = {i: content for i in unknown if (content := known[i]) is not None}
    try:
        files.remember({views.stored_name(i): content for i, content in found.items()})
    except TrainingError as error:  # what is there can be used all the same
        logger.warning("%s; with verify: false these samples are read again next time", error)
    return list(known.values())


def _trusted(
    files: CacheFiles, views: SampleViews, index: int, chosen: Sequence[int]
) -> str | None:
    try:
        content = files.content_of(views.stored_name(index))
    except ClipDepthError:  # told when the sample is read
        return None
    if content is None:
        return None
    there = all(Key(content, views.view_key(index, view)) in files for view in chosen)
    return content if there else None


def build_cache(
    files: CacheFiles,
    views: SampleViews,
    missing: Sequence[tuple[Key, int, int]],
    read: Read,
    *,
    batch_size: int,
    workers: int,
    tell: Tell,
) -> None:
    """Runs the tower and stores its tokens.

    Args:
        files: The cache.
        views: The samples.
        missing: (key, sample, view) of what to compute.
        read: Pixels (B, 3, H, W) -> features.
        batch_size: Views in one pass of the tower.
        workers: Processes that read.
        tell: Hears of the progress.

    Raises:
        TrainingError: No room on the disk; what was finished is kept.
        DataError: A sample is another one by now than was found.
    """
    logger.info("cache %s: %d views to compute", files.folder, len(missing))
    writer, done = ShardWriter(files), 0
    pending = _Pending(views, missing)
    try:
        for pixels_B3HW, depth_B1HW, intrinsics_B4 in DataLoader(
            pending, batch_size, num_workers=workers, generator=_own()
        ):
            features = read(pixels_B3HW)
            rows = missing[done : done + pixels_B3HW.shape[0]]
            record_BK = files.layout.pack(features, depth_B1HW, intrinsics_B4)
            names = [views.stored_name(index) for _, index, _ in rows]
            writer.add([key for key, _, _ in rows], names, record_BK)
            done += len(rows)
            tell("running the tower", done, len(missing))
        writer.finish()
    finally:
        writer.abandon()


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

"""CachedSource: training batches read from a token cache, ahead of their use.

Axes: B views, K bytes of a record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.training.batches import FeatureBatch, camera_scale

if TYPE_CHECKING:
    from clipdepth_plugin.training.cache_files import CacheFiles, Key


@dataclass(frozen=True)
class CachedBatch:
    """What one batch is to hold.

    Attributes:
        keys: B records.
        names: Names of their samples.
    """

    keys: Sequence[Key]
    names: list[str]


class CachedSource:
    """Reads tokens instead of pictures; the tower is not run."""

    def __init__(
        self,
        files: CacheFiles,
        plan: Callable[[int, int], Iterator[CachedBatch]],
        length: int,
        device: torch.device,
        canonical_focal: float | None,
        prefetch: int,
    ) -> None:
        """Keeps what it needs.

        Args:
            files: The cache, with every record that is ever asked for.
            plan: (epoch, start) -> this process's part of the batches.
            length: Batches in an epoch.
            device: Where to compute.
            canonical_focal: The head's.
            prefetch: Batches read ahead.
        """
        self._files = files
        self._plan = plan
        self._length = length
        self._device = device
        self._canonical_focal = canonical_focal
        self._prefetch = prefetch

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """See ``FeatureSource``."""
        pinned = self._device.type == "cuda"
        waiting: deque[tuple[CachedBatch, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(min(self._prefetch, 4), "cache") as reader:
            try:
                for batch in self._plan(epoch, start):
                    waiting.append(
                        (batch, reader.submit(self._files.read, batch.keys, pinned=pinned))
                    )
                    if len(waiting) > self._prefetch:
                        yield self._finish(*waiting.popleft())
                while waiting:
                    yield self._finish(*waiting.popleft())
            finally:
                reader.shutdown(wait=True, cancel_futures=True)

    def _finish(self, batch: CachedBatch, read: Future[Tensor]) -> FeatureBatch:
        record_BK = read.result().to(self._device, non_blocking=True)
        features, depth_B1HW, intrinsics_B4 = self._files.layout.unpack(record_BK)
        return FeatureBatch(
            features,
            depth_B1HW,
            depth_B1HW > 0,
            camera_scale(intrinsics_B4, self._canonical_focal, batch.names),
            batch.names,
        )

"""EpochOrder: which samples make up which batch, known before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.data.seeds import mixed_seed


@dataclass(frozen=True, slots=True)
class Draw:
    """One use of a sample in an epoch; ``repeat`` counts its uses there before."""

    index: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The part of an epoch that one process reads.

    The order of all samples depends on (seed, epoch) alone. A global batch is the next
    ``batch_size * world_size`` of them, and each process takes its contiguous part of it: W
    processes with batches of b see the same batches as one process with W * b.

    Attributes:
        batch_size: Of this process.
        seed: Of the run.
        epoch: Number of the epoch, from 0.
        rank: This process.
        world_size: Number of processes.
        start_batch: The first batch that is wanted.
        drop_last: Leave out a last batch that is not full. Kept, it is split evenly; where it has
            fewer samples than there are processes, the last of them get one batch less.
        shuffle: False keeps the order of the samples.
    """

    batch_size: int
    seed: int
    epoch: int
    rank: int = 0
    world_size: int = 1
    start_batch: int = 0
    drop_last: bool = True
    shuffle: bool = True


class EpochOrder:
    """The batches of one epoch in one process, from ``plan.start_batch`` on."""

    def __init__(
        self, plan: EpochPlan, counts: Sequence[int], repeats: Sequence[float] | None = None
    ) -> None:
        """Draws the order; each part has ``counts`` samples, each seen ``repeats`` times."""
        self._plan = plan
        entries_N2 = _entries(plan, counts, repeats or [1.0] * len(counts))
        if plan.shuffle:
            generator = torch.Generator().manual_seed(mixed_seed("order", plan.seed, plan.epoch))
            entries_N2 = entries_N2[torch.randperm(len(entries_N2), generator=generator)]
        self._entries_N2 = entries_N2
        whole, rest = divmod(len(entries_N2), plan.batch_size * plan.world_size)
        self._count = max(whole + (not plan.drop_last and rest > plan.rank) - plan.start_batch, 0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[Draw]]:
        plan = self._plan
        size = plan.batch_size * plan.world_size
        for number in range(plan.start_batch, plan.start_batch + self._count):
            parts = self._entries_N2[number * size :][:size].tensor_split(plan.world_size)
            yield [Draw(index, repeat) for index, repeat in parts[plan.rank].tolist()]


def repeats_of(shares: Sequence[float], counts: Sequence[int]) -> list[float]:
    """How often each part's samples are seen in an epoch of all ``counts``, to have its share."""
    total = sum(counts) / sum(shares)
    return [total * share / max(count, 1) for share, count in zip(shares, counts, strict=True)]


def _entries(plan: EpochPlan, counts: Sequence[int], repeats: Sequence[float]) -> Tensor:
    """(N, 2) int64: every sample that is to be seen, with its repeat."""
    parts, first = [torch.empty(0, 2, dtype=torch.int64)], 0
    for part, (count, times) in enumerate(zip(counts, repeats, strict=True)):
        everything = torch.arange(first, first + count)
        parts += [_with_repeat(everything, repeat) for repeat in range(int(times))]
        extra = round((times - int(times)) * count)
        if extra:
            generator = torch.Generator().manual_seed(
                mixed_seed("extra", plan.seed, plan.epoch, part)
            )
            chosen = torch.randperm(count, generator=generator)[:extra].sort().values
            parts.append(_with_repeat(everything[chosen], int(times)))
        first += count
    return torch.cat(parts)


def _with_repeat(indices: Tensor, repeat: int) -> Tensor:
    return torch.stack([indices, torch.full_like(indices, repeat)], dim=1)

"""SampleDataset: a set whose samples can be read in any order.

Axes: H W pixels.
"""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.data.sample import Sample

if TYPE_CHECKING:
    from clipdepth_plugin.data.augment_config import AugmentConfig


class SampleDataset(Dataset[Sample], ABC):
    """Samples by number.

    Attributes:
        own_augment: Augmentation of its samples in place of the run's; None: the run's.
        missing: Number of a sample that lacks a file -> what is missing, known without reading.
        units: Of its samples' depth.
        labels: Whose labels its depths are (a teacher's, with its licence); None: they are truth.
    """

    own_augment: AugmentConfig | None = None
    missing: Mapping[int, str] = MappingProxyType({})
    units: Units = "metres"
    labels: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Reads a sample.

        Raises:
            DataError: A file is missing, damaged or not what the format asks for.
            ImageError: The same of the picture.
        """

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def name(self, index: int) -> str:
        """A sample's name, without reading it."""

    def augment_of(self, index: int) -> AugmentConfig | None:  # noqa: ARG002
        """Augmentation of the sample in place of the run's; None: the run's."""
        return self.own_augment


class Spread(SampleDataset):
    """At most ``limit`` samples of a set, evenly spread over it."""

    def __init__(self, whole: SampleDataset, limit: int) -> None:
        """Chooses the samples; the first is always one of them."""
        self._whole = whole
        self.units, self.labels = whole.units, whole.labels
        self._count = min(limit, len(whole))
        there = ((index, self._there(index)) for index in range(self._count))
        self.missing = {
            index: whole.missing[number] for index, number in there if number in whole.missing
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._whole[self._there(index)]

    def name(self, index: int) -> str:
        """See ``SampleDataset``."""
        return self._whole.name(self._there(index))

    def _there(self, index: int) -> int:
        return range(self._count)[index] * len(self._whole) // self._count


class Mixture(SampleDataset):
    """Several sets as one long one; each may be seen more often in an epoch than the others."""

    def __init__(self, sets: Sequence[SampleDataset], repeats: Sequence[float]) -> None:
        """Joins the sets: the indices of a part follow those of the part before."""
        self.sets = tuple(sets)
        self.repeats = tuple(repeats)
        assert len(self.sets) == len(self.repeats)
        self._ends = list(itertools.accumulate(map(len, self.sets)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        part, inside = self._place(index)
        return self.sets[part][inside]

    def name(self, index: int) -> str:
        """See ``SampleDataset``."""
        part, inside = self._place(index)
        return self.sets[part].name(inside)

    def augment_of(self, index: int) -> AugmentConfig | None:
        """See ``SampleDataset``."""
        part, inside = self._place(index)
        return self.sets[part].augment_of(inside)

    def part_of(self, index: int) -> int:
        """Number of the set that a sample is of."""
        return self._place(index)[0]

    @property
    def relative(self) -> tuple[bool, ...]:
        """Whether a part's depth is relative: inverse depth, not metres."""
        return tuple(one.units != "metres" for one in self.sets)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples in each part."""
        return tuple(map(len, self.sets))

    def _place(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

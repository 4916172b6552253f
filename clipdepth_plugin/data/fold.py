"""Fold: a part of a set's sequences, or of each sequence's frames, to validate on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from clipdepth_plugin.data.seeds import mixed_seed

_T = TypeVar("_T")
_FORM = re.compile(r"(?P<other>not )?(?P<number>\d{1,4})/(?P<of>\d{1,4})(?P<each> of each)?")


@dataclass(frozen=True, slots=True)
class Fold:
    """One part of several that share nothing.

    Attributes:
        number: Of the part, from 1.
        of: Parts.
        other: All parts but this one.
        each: Parts are runs of frames of every sequence, not sequences.
    """

    number: int
    of: int
    other: bool = False
    each: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """``1/5``, ``not 1/5``, ``1/5 of each``; a ValueError for anything else."""
        found = _FORM.fullmatch(text)
        if found is None or not 1 <= int(found["number"]) <= int(found["of"]) >= 2:
            raise ValueError(
                f"{text!r} is no part: give one such as '1/5', 'not 1/5' or '1/5 of each'"
            )
        other, each = found["other"] is not None, found["each"] is not None
        return cls(int(found["number"]), int(found["of"]), other, each)

    def takes(self, sequence: str) -> bool:
        """Whether any frame of a sequence is in it; whole sequences go by a hash of the name."""
        if self.each:
            return True
        return (mixed_seed("fold", sequence) % self.of == self.number - 1) != self.other

    def part(self, frames: Sequence[_T]) -> list[_T]:
        """Those of a sequence's frames that are in it."""
        if not self.each:
            return list(frames)
        first, end = (len(frames) * part // self.of for part in (self.number - 1, self.number))
        return [*frames[:first], *frames[end:]] if self.other else list(frames[first:end])

"""Shard: the part of the frames that one of several processes labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from clipdepth_plugin.errors import SourceError, quoted

_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """Number ``number``, from 1 on, of ``of`` shards."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``2/8``.

        Raises:
            SourceError: It is no shard.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= _MOST:
            raise SourceError(
                f"shard {quoted(text)}: expected I/N, such as 2/8, with I from 1 to N (of Slurm's "
                "array job: 1-N)"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, name: str) -> bool:
        """Whether a frame is in it; the same in every process."""
        from clipdepth_plugin.data.seeds import mixed_seed

        return mixed_seed("shard", name) % self.of == self.number - 1

    def has_part(self, part: int) -> bool:
        """Whether a part (a tar file, a video) is, where whole ones are dealt out."""
        return part % self.of == self.number - 1

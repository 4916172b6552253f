"""Which pictures are whose: how shards share pictures, and how many each has."""

from __future__ import annotations

from collections.abc import Iterator

from clipdepth_plugin.labelling.pictures import Pictures, Unread
from clipdepth_plugin.labelling.shards import Shard


def unread_of(pictures: list[Pictures], shard: Shard) -> Iterator[Unread]:
    """The pictures of a shard, in the order in which they are read."""
    for one in pictures:
        whole = takes_whole_parts(one, shard)
        for part in range(one.parts):
            if not whole or shard.has_part(part):
                unread = one.part(part)
                yield from (each for each in unread if whole or shard.has(each.name))


def takes_whole_parts(pictures: Pictures, shard: Shard) -> bool:
    """Whether its tar files or videos, not its pictures, are dealt out to shards."""
    return pictures.reads_to_skip and pictures.parts >= shard.of


def count_of(pictures: list[Pictures], shard: Shard) -> int | None:
    """How many pictures a shard has; None where that is not known without reading them."""
    total = 0
    for one in pictures:
        if not one.reads_to_skip:
            total += sum(1 for _ in unread_of([one], shard))
            continue
        whole = takes_whole_parts(one, shard)
        parts = [part for part in range(one.parts) if not whole or shard.has_part(part)]
        lengths = [one.length(part) for part in parts]
        if None in lengths:
            return None
        known = sum(length for length in lengths if length is not None)
        total += known if whole else known // shard.of
    return total

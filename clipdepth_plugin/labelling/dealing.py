"""Which pictures are whose: those of a job, how shards share them, and how many each has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clipdepth_plugin.errors import SourceError, printable
from clipdepth_plugin.labelling.folder import META_FILE
from clipdepth_plugin.labelling.job import LabelJob
from clipdepth_plugin.labelling.pictures import Pictures, Unread, open_pictures
from clipdepth_plugin.labelling.pictures.files import searched_root
from clipdepth_plugin.labelling.pictures.kinds import Options
from clipdepth_plugin.labelling.shards import Shard


def opened_pictures(job: LabelJob) -> list[Pictures]:
    """The pictures of a job, none of them its own.

    Raises:
        ClipDepthError: They can't be opened, or lie in the labelled folder or around it.
    """
    for spec in job.pictures:
        root = searched_root(spec)
        if root is not None and _lies_in(job.folder, root):
            raise _labels_its_own(job.folder, f"lies in {printable(spec)}")
    opened = open_pictures(job.pictures, Options(every=job.every))
    if os.path.lexists(job.folder / META_FILE):  # else nothing there is of a job
        for folder in (folder for pictures in opened for folder in pictures.folders):
            if _lies_in(folder, job.folder):
                raise _labels_its_own(job.folder, f"holds {printable(folder)}")
    return opened


def _lies_in(path: Path | str, folder: Path | str) -> bool:
    """Whether it is the folder or below it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _labels_its_own(folder: Path, where: str) -> SourceError:
    return SourceError(
        f"{printable(folder)}: {where}, whose pictures are labelled, and its own would be "
        "labelled, too; give a folder outside"
    )


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

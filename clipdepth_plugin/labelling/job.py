"""LabelJob: pictures, source, folder, and how a process goes about it; can be sent to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipdepth_plugin.arguments import parse_count
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.errors import SourceError, quoted
from clipdepth_plugin.labelling.names import frame_name
from clipdepth_plugin.labelling.pictures import PictureSpec
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import DepthSource


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """What is to be labelled.

    Attributes:
        pictures: Paths, globs, ``lerobot:REPO``, configs of streams.
        source: As ``open_source`` takes it, or a function that opens one (for Ray, one that can
            be pickled).
        folder: The labelled folder.
        split: The folder in it.
        settings: What the labels depend on.
        every: Of videos and episodes, every n-th frame.
        batch_size: Pictures that the source is given at once.
        device: Where a source that is named runs.
        threads: That read and, as many more, that write beside the source.
        bad_file_limit: Pictures that may be bad, in this process.
        shard: Which part of the pictures.
    """

    pictures: tuple[PictureSpec, ...]
    source: str | Callable[[], DepthSource]
    folder: Path
    split: str = "train"
    settings: LabelSettings = field(default_factory=LabelSettings)
    every: int = 1
    batch_size: int = 1
    device: str = "cpu"
    threads: int = 4
    bad_file_limit: int = 0
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        """Refuses what no job can have."""
        if isinstance(self.pictures, str | DataConfig):
            raise SourceError(f"pictures {quoted(self.pictures)}: expected a tuple of such")
        for name in ("every", "batch_size", "threads"):
            parse_count(getattr(self, name), name)
        if frame_name(self.split) != self.split:
            raise SourceError(f"split {quoted(self.split)}: expected a plain name, such as train")


class Progress(NamedTuple):
    """How far a process is.

    Attributes:
        done: Pictures that are labelled, were so already, or are bad.
        total: Of this shard; None where that is not known.
        labelled: Those that this process labelled.
        bad: Those that it could not read.
    """

    done: int
    total: int | None
    labelled: int
    bad: int


@dataclass(frozen=True)
class LabelReport:
    """What a process did.

    Attributes:
        labelled: Pictures that it labelled.
        present: Pictures that were labelled before.
        empty: Names of those of which no pixel counts (the first thousand).
        bad: Name -> why it could not be read.
        seconds: That it took, without opening the source.
        source_seconds: Of them, in the source.
    """

    labelled: int = 0
    present: int = 0
    empty: tuple[str, ...] = ()
    bad: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    source_seconds: float = 0.0

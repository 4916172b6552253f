"""AnnotateSettings and AnnotateJob: what is annotated how; a job can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipdepth_plugin.arguments import parse_count
from clipdepth_plugin.errors import DataError, printable
from clipdepth_plugin.labelling.settings import MOST_METRES, SourceSettings
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import DepthSource
from clipdepth_plugin.settings import GivenMetres


class AnnotateSettings(SourceSettings):
    """What the depth depends on beside data set and source."""

    max_depth: Annotated[GivenMetres, Field(ge=0.1, le=MOST_METRES)] | None = None
    """Metres at the end of the encoder's range. None: LeRobot's own, 10."""

    intrinsics_file: str | None = None
    """JSON: camera, or ``<episode>/<camera>`` -> [fx, fy, cx, cy] or null."""


@dataclass(frozen=True, kw_only=True)
class AnnotateJob:
    """What is to be annotated.

    Attributes:
        dataset: A LeRobot data set: a folder, or ``ORG/NAME``.
        source: As ``open_source`` takes it, or a function that opens one (for Ray, one that can
            be pickled).
        folder: The new data set. Until it is whole it is not there, and ``parts`` is.
        cameras: Those that get depth, by key or by what is behind ``observation.images.``; none:
            all.
        settings: What the depth depends on.
        batch_size: Pictures that the source is given at once.
        device: Where a source that is named runs.
        shard: Which part of the episodes.
    """

    dataset: str
    source: str | Callable[[], DepthSource]
    folder: Path
    cameras: tuple[str, ...] = ()
    settings: AnnotateSettings = field(default_factory=AnnotateSettings)
    batch_size: int = 1
    device: str = "cpu"
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        """Refuses what no job can have."""
        parse_count(self.batch_size, "batch_size")
        path = str(self.folder.absolute())
        if "'" in path or "\n" in path:
            raise DataError(
                f"{printable(path)}: LeRobot can't join videos in a folder with an apostrophe or a "
                "line break in its path; give another"
            )

    @property
    def parts(self) -> Path:
        """The folder of the episodes that are done; it goes when all are joined."""
        whole = self.folder.absolute()
        return whole.with_name(f"{whole.name}.parts")

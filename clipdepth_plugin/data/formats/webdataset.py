"""WebDataset: tar shards, a sample being the files that share a key.

000.jpg, 000.depth.png and 000.intrinsics.json are one sample: a key ends at the first dot of the
file's name.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdepth_plugin.data.config import DataConfig, register_format
from clipdepth_plugin.data.files import require
from clipdepth_plugin.data.stream import FIELDS, Record, StreamDataset
from clipdepth_plugin.errors import DataError

_IMAGE, _DEPTH, _CAMERA = "jpg;jpeg;png;webp", "depth.png", "intrinsics.json"


@register_format("webdataset", reads=FIELDS, streams=True, splits=False)
class TarStream(StreamDataset):
    """The samples of tar shards, local or remote."""

    def __init__(self, config: DataConfig) -> None:
        """Expands the list of shards; none is read."""
        super().__init__(config)
        require("webdataset", "stream", "format webdataset")
        braces = require("braceexpand", "stream", "format webdataset")
        shards = [one for part in config.location().split("::") for one in braces.braceexpand(part)]
        for shard in shards:
            if shard.startswith("pipe:") or shard == "-":
                raise DataError(
                    f"{shard}: commands are not run from a config; give a path or an address"
                )
            if "://" not in shard and not Path(shard).is_file():
                raise DataError(f"{shard}: no such tar file; check root {config.root!r}")
        self._shards = shards
        self._image_suffixes = (config.image_column or _IMAGE).split(";")
        self._depth_suffixes = (config.depth_column or _DEPTH).split(";")
        self._camera_suffixes = (config.intrinsics_column or _CAMERA).split(";")

    @property
    def shard_count(self) -> int:
        """See ``StreamDataset``."""
        return len(self._shards)

    def read_shard(self, shard: int) -> Iterator[Record]:
        """See ``StreamDataset``."""
        tar = require("webdataset.tariterators", "stream", "format webdataset")
        place = self._shards[shard]
        title = re.sub(r"\.tar(\.\w+)?$", "", os.path.basename(place))  # noqa: PTH119
        name = f"{self.config.name}/{title}" if self.config.name else title
        try:
            with contextlib.closing(_open(place)) as stream:
                files = tar.tar_file_expander([{"url": place, "stream": stream}])
                for found in tar.group_by_keys(files):
                    yield Record(
                        f"{name}/{found['__key__']}",
                        _member(found, self._image_suffixes),
                        _member(found, self._depth_suffixes),
                        _member(found, self._camera_suffixes),
                    )
        except (
            OSError,
            EOFError,
            ValueError,
            tarfile.TarError,
            subprocess.SubprocessError,
        ) as error:
            reason = (
                f"{place}: the shard is damaged or can't be read from here on ({error.args[0]})"
            )
            yield Record(name, error=f"{reason}; get it again")


def _open(shard: str) -> Any:
    if "://" not in shard:
        return Path(shard).open("rb")
    return require("webdataset.gopen", "stream", "format webdataset").gopen(shard)


def _member(found: dict[str, Any], suffixes: list[str]) -> bytes | None:
    return next((found[suffix] for suffix in suffixes if suffix in found), None)

"""WebDataset: tar shards, a sample being the files that share a key.

000.jpg, 000.depth.png and 000.intrinsics.json are one sample: a key ends at the first dot of the
file's name.
"""

from __future__ import annotations

import contextlib
import http.client
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Any, Self

from clipdepth_plugin.data.addresses import expanded_shards, open_address
from clipdepth_plugin.data.config import DataConfig, register_format
from clipdepth_plugin.data.files import require
from clipdepth_plugin.data.stream import FIELDS, Record, StreamDataset
from clipdepth_plugin.errors import shortened

_MEMBER_BYTES = 256 << 20
_DAMAGED = (zlib.error, lzma.LZMAError, http.client.HTTPException)
_IMAGE, _DEPTH, _CAMERA = "jpg;jpeg;png;webp", "depth.png", "intrinsics.json"


@register_format("webdataset", reads=FIELDS, streams=True, splits=False)
class TarStream(StreamDataset):
    """The samples of tar shards, local or remote."""

    def __init__(self, config: DataConfig, *, with_depth: bool = True) -> None:
        """Expands the list of shards; none is read."""
        super().__init__(config, with_depth=with_depth)
        require("webdataset", "stream", "format webdataset")
        self._shards = expanded_shards(config.location())
        self._image_suffixes = (config.image_column or _IMAGE).split(";")
        self._depth_suffixes = (config.depth_column or _DEPTH).split(";")
        self._camera_suffixes = (config.intrinsics_column or _CAMERA).split(";")

    @property
    def shard_count(self) -> int:
        """See ``StreamDataset``."""
        return len(self._shards)

    def shard_name(self, shard: int) -> str:
        """See ``StreamDataset``."""
        title = re.sub(r"\.tar(\.\w+)?$", "", os.path.basename(self._shards[shard]))  # noqa: PTH119
        return f"{self.config.name}/{title}" if self.config.name else title

    def read_shard(self, shard: int) -> Iterator[Record]:
        """See ``StreamDataset``."""
        tar = require("webdataset.tariterators", "stream", "format webdataset")
        place, name = self._shards[shard], self.shard_name(shard)
        try:
            with contextlib.closing(open_address(place)) as stream:
                for found in tar.group_by_keys(_members(stream, place)):
                    yield Record(
                        f"{name}/{found['__key__']}",
                        _member(found, self._image_suffixes),
                        _member(found, self._depth_suffixes) if self.with_depth else None,
                        _member(found, self._camera_suffixes),
                    )
        # zlib.error and lzma.LZMAError are no OSErrors; http.client's errors of a line cut short.
        except (OSError, EOFError, ValueError, tarfile.TarError, *_DAMAGED) as error:
            reason = f"{place}: the shard is damaged or can't be read from here on ({error})"
            yield Record(name, error=f"{reason}; get it again")


class _Header(tarfile.TarInfo):
    """A member's header; ``tarfile`` takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error


def _members(stream: IO[bytes], place: str) -> Iterator[dict[str, Any]]:
    """The files of a tar archive as webdataset groups them; metadata (``__name__``) is left out."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        for member in archive:
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                if member.size > _MEMBER_BYTES:  # of a sparse one, more than the archive holds
                    raise ValueError(f"{shortened(member.name)}: larger than {_MEMBER_BYTES} bytes")
                file = archive.extractfile(member)
                assert file is not None
                yield {"fname": member.name, "data": file.read(), "__url__": place}
            archive.members = []  # type: ignore[attr-defined]  # else it keeps a header of each


def _member(found: dict[str, Any], suffixes: list[str]) -> bytes | None:
    return next((found[suffix] for suffix in suffixes if suffix in found), None)

"""Streams of ``data/``: Hugging Face data sets and WebDataset shards, their pictures alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from clipdepth_plugin.data.config import FORMATS, DataConfig
from clipdepth_plugin.data.stream import Record, StreamDataset, camera_of, image_of
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.labelling.names import frame_name, sequence_name
from clipdepth_plugin.labelling.pictures.decoding import content_of, decoded
from clipdepth_plugin.labelling.pictures.kinds import (
    Content,
    Options,
    Pictures,
    PictureSpec,
    Unread,
    register_pictures,
)


def _is_stream(spec: PictureSpec) -> bool:
    return isinstance(spec, DataConfig)


@register_pictures("stream", recognises=_is_stream)
class StreamPictures(Pictures):
    """The pictures of a stream; each of its files is a part, and a sequence."""

    reads_to_skip = True
    titles: Mapping[str, str]

    def __init__(self, config: DataConfig, options: Options) -> None:
        """Opens the stream; depth that it has is not read."""
        del options
        if not config.is_stream:
            streams = ", ".join(sorted(name for name, one in FORMATS.items() if one.streams))
            raise DataError(
                f"{config.root}: pictures of a data set come from a stream ({streams}); of format "
                f"{config.format}, give the folder of its pictures"
            )
        if config.depth_column is not None:
            raise DataError(f"{config.root}: depth_column: labels are made anew; leave it out")
        self._config = config
        self._stream: StreamDataset = FORMATS[config.format].open(config, with_depth=False)
        shards = [self._stream.shard_name(one) for one in range(self._stream.shard_count)]
        if len(set(shards)) < len(shards):
            twice = next(name for name in shards if shards.count(name) > 1)
            raise DataError(
                f"{config.root}: two of its files are called {twice}, so that their frames would "
                "have the same names; label them into folders of their own"
            )
        self.titles = {sequence_name(*name.split("/")): config.location() for name in shards}

    @property
    def parts(self) -> int:
        """See ``Pictures``."""
        return self._stream.shard_count

    def part(self, number: int) -> Iterator[Unread]:
        """See ``Pictures``."""
        seen: set[str] = set()
        for index, record in enumerate(self._stream.read_shard(number)):
            *folders, key = record.name.split("/")
            name = f"{sequence_name(*folders, index=index)}/{frame_name(key)}"
            if record.error is None and name in seen:
                twice = Record(record.name, error=f"{record.name}: is in the shard twice")
                yield Unread(name, record.name, functools.partial(_read, twice, self._config))
                continue
            seen.add(name)
            yield Unread(name, record.name, functools.partial(_read, record, self._config))


def _read(record: Record, config: DataConfig) -> Content:
    if record.error is not None:
        raise DataError(record.error)
    if record.image is None:
        raise DataError(f"{record.name}: has no picture; check image_column")
    camera = config.intrinsics or camera_of(record)
    image: Any = record.image
    if isinstance(image, bytes):
        return decoded(image, record.name, camera)
    if isinstance(image, Image.Image):
        return content_of(image, record.name, camera=camera)
    pixels_HW3 = image_of(record).permute(1, 2, 0).numpy()
    return Content(np.ascontiguousarray(pixels_HW3), camera=camera)

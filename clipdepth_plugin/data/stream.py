"""Streams: sets larger than the disk, read front to back.

A stream yields undecoded records, which are cheap to shuffle, to skip, and to read in every
process.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from clipdepth_plugin.arguments import Intrinsics, parse_camera
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.files import (
    DepthUnit,
    SampleMaker,
    pixels_of,
    read_image,
    stored_depth,
)
from clipdepth_plugin.data.order import EpochPlan
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.data.seeds import mixed_seed
from clipdepth_plugin.errors import DataError, HostError, quoted
from clipdepth_plugin.files.documents import parse_json

_T = TypeVar("_T")

FIELDS = ("image_column", "depth_column", "intrinsics_column", "shuffle_buffer")
"""The fields of ``DataConfig`` that every stream reads."""


class Record(NamedTuple):
    """A sample before decoding.

    Attributes:
        name: Of the sample.
        image: Its picture: bytes or a Pillow image.
        depth: Its depth: bytes, a Pillow image or an array.
        intrinsics: [fx, fy, cx, cy], a 3 x 3 matrix, either as JSON, or None.
        error: Why the stream itself could not be read here.
    """

    name: str
    image: Any = None
    depth: Any = None
    intrinsics: Any = None
    error: str | None = None


class StreamDataset(IterableDataset[Sample], ABC):
    """Samples in the order of their stream, in metres.

    Attributes:
        labels: See ``SampleDataset``.
    """

    labels: str | None = None

    def __init__(self, config: DataConfig, *, with_depth: bool = True) -> None:
        """Keeps the config; nothing is read. Without ``with_depth`` records have no depth."""
        super().__init__()
        self.config, self.with_depth = config, with_depth
        self._make = SampleMaker(config)

    @property
    @abstractmethod
    def shard_count(self) -> int:
        """Number of files of the stream."""

    @abstractmethod
    def shard_name(self, shard: int) -> str:
        """The name of one of them, with which its records' names begin."""

    @abstractmethod
    def read_shard(self, shard: int) -> Iterator[Record]:
        """The records of one of them, in order."""

    def records(self, seed: int | None = None) -> Iterator[Record]:
        """The records of the stream.

        ``seed`` gives the order of shards, and of records through the buffer; None leaves them as
        they are. With ``limit`` the shards are in order, as it takes the first records.
        """
        chance, shards = random.Random(seed), list(range(self.shard_count))
        limit = self.config.limit
        if seed is not None and limit is None:  # else other samples in each epoch
            chance.shuffle(shards)
        everything = (record for shard in shards for record in self.read_shard(shard))
        records = islice(everything, limit)
        return records if seed is None else shuffled(records, self.config.shuffle_buffer, chance)

    def __iter__(self) -> Iterator[Sample]:
        """Every sample."""
        return (self.decode(record) for record in self.records())

    def decode(self, record: Record) -> Sample:
        """A record's sample."""
        if record.error is not None:
            raise DataError(record.error)
        if record.image is None or record.depth is None:
            what = "picture" if record.image is None else "depth"
            raise DataError(f"{record.name}: has no {what}; check image_column and depth_column")
        depth_1HW = self._depth(record)
        image_3HW = image_of(record)
        name, camera = record.name, camera_of(record)
        where = f"{name}: intrinsics"
        return self._make(image_3HW, depth_1HW, camera, name, what=name, camera_from=where)

    def _depth(self, record: Record) -> Tensor:
        config, stored = self.config, stored_depth(record.depth, record.name)
        if stored.dtype.kind != "f" and config.depth_scale is None:
            raise DataError(
                f"{record.name}: depth is stored in whole numbers ({stored.dtype}); set "
                "depth_scale, the stored value of one metre"
            )
        return DepthUnit.of(config, 1.0).metres(stored)


class StreamMixture:
    """One stream or several, interleaved at random in the proportions given."""

    def __init__(self, streams: Sequence[StreamDataset], weights: Sequence[float]) -> None:
        """Joins the streams."""
        self.streams, self.weights = tuple(streams), tuple(weights)

    @property
    def sets(self) -> tuple[StreamDataset, ...]:
        """The streams, as of ``Mixture``."""
        return self.streams

    @property
    def relative(self) -> tuple[bool, ...]:
        """As of ``Mixture``: streams are in metres."""
        return (False,) * len(self.streams)

    def records(self, plan: EpochPlan) -> Iterator[tuple[int, Record]]:
        """Every record of an epoch, with the number of its stream."""

        def part(number: int, stream: StreamDataset) -> Iterator[tuple[int, Record]]:
            seed = mixed_seed("stream", plan.seed, plan.epoch, number)
            return ((number, one) for one in stream.records(seed if plan.shuffle else None))

        parts = [part(number, stream) for number, stream in enumerate(self.streams)]
        chance = random.Random(mixed_seed("mix", plan.seed, plan.epoch))
        return interleaved(parts, self.weights, chance)


def shuffled(records: Iterable[Record], size: int, chance: random.Random) -> Iterator[Record]:
    """Draws from a buffer of ``size`` records that is filled up from the stream."""
    held: list[Record] = []
    for record in records:
        if len(held) < size:
            held.append(record)
            continue
        place = chance.randrange(size)
        yield held[place]
        held[place] = record
    chance.shuffle(held)
    yield from held


def interleaved(
    parts: Sequence[Iterator[_T]], weights: Sequence[float], chance: random.Random
) -> Iterator[_T]:
    """Draws from several streams until the last one has ended."""
    left = dict(enumerate(parts))
    while left:
        (number,) = chance.choices(list(left), [weights[one] for one in left])
        try:
            yield next(left[number])
        except StopIteration:
            del left[number]


def image_of(record: Record) -> Tensor:
    """A record's picture, (3, H, W) uint8 RGB; raises a ClipDepthError where it is none."""
    value = record.image
    if isinstance(value, bytes):
        return read_image(value, record.name)
    if isinstance(value, Image.Image):
        return pixels_of(value, record.name)
    pixels_HWC: NDArray[Any] = np.asarray(value)
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or pixels_HWC.dtype != np.uint8:
        raise DataError(
            f"{record.name}: the picture has shape {pixels_HWC.shape} of {pixels_HWC.dtype}, "
            "expected an encoded picture or (H, W, 3) uint8"
        )
    return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)


def camera_of(record: Record) -> Intrinsics | None:
    """A record's camera; raises a DataError where it has one that is none."""
    value = record.intrinsics
    if value is None:
        return None
    if isinstance(value, bytes | str):
        value = parse_json(value, f"{record.name}: intrinsics", DataError)
    if isinstance(value, Mapping):
        if "intrinsics" not in value:
            raise DataError(
                f"{record.name}: intrinsics are {quoted(value)}, expected [fx, fy, cx, "
                'cy], a 3 x 3 matrix, or {"intrinsics": one of these}'
            )
        value = value["intrinsics"]
    if value is None:
        return None
    try:
        return parse_camera(value, f"{record.name}: intrinsics")
    except HostError as error:
        raise DataError(str(error)) from error

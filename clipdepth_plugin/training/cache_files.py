"""The files of a token cache: records of fixed size in shards, found by content and view.

    cache.json             what made the tokens: tower weights, preprocessing, levels, ...
    shard-<id>.bin         records, one after another
    shard-<id>.json        for each record its sample's content hash, view and name
    names-<id>.json        what samples were found to be: names and content hashes; the last counts

A name here goes with a hash of how its set was read (``SampleViews.stored_name``).

A record is tokens (L, N, D), pixels (3, H, W) for heads that read them, context (D), depth (H, W),
intrinsics (4), padded to 64 bytes. A shard's JSON appears after its records are on the disk, so a
killed build loses one shard at most.

Axes: B records, K bytes of a record.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import TEMPORARY, sync_folder, write_file
from clipdepth_plugin.training.cache_layout import RecordLayout

IDENTITY = "cache.json"
SHARD_BYTES = 256 * 1024 * 1024


class Key(NamedTuple):
    """What a record is found by.

    Attributes:
        content: Hash of the sample: picture, depth, camera.
        view: Which view of it.
    """

    content: str
    view: str


class CacheFiles:
    """A cache's folder, opened.

    Attributes:
        folder: Where.
        layout: Of its records.
    """

    def __init__(self, folder: Path, layout: RecordLayout) -> None:
        self.folder = folder
        self.layout = layout
        self._places: dict[Key, tuple[int, int]] = {}
        self._contents: dict[str, str] = {}
        self._shards: list[NDArray[np.uint8]] = []

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], layout: RecordLayout) -> Self:
        """Opens a cache, or makes an empty one.

        Raises:
            TrainingError: The folder holds a cache that other weights, preprocessing or settings
                made: says what differs. Or it can't be read or written.
        """
        path = folder / IDENTITY
        if path.is_file():
            check_identity(path, identity)
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"cache {folder}: can't be made ({error.strerror})") from error
            write_file(path, json.dumps(identity, indent=1).encode())
        files = cls(folder, layout)
        files.refresh()
        return files

    def refresh(self) -> None:
        """Looks for shards anew, also those that other processes wrote.

        Raises:
            TrainingError: A shard can't be read, or lacks records that it lists.
        """
        self._places, self._contents, self._shards = {}, {}, []
        size = self.layout.record_bytes
        indices = self.folder.glob("shard-*.json")
        for index in sorted(indices, key=_age):
            binary = index.with_suffix(".bin")
            try:
                entries = json.loads(index.read_text(encoding="utf-8"))
                there = binary.stat().st_size
            except (OSError, ValueError) as error:
                raise TrainingError(_damaged(binary, str(error))) from error
            if there != len(entries) * size:
                raise TrainingError(_damaged(binary, f"{there} bytes for {len(entries)} records"))
            mapped = np.memmap(binary, np.uint8, "r", shape=(len(entries), size))
            self._shards.append(mapped)
            for row, (content, view, name) in enumerate(entries):
                self._places[Key(content, view)] = (len(self._shards) - 1, row)
                self._contents[name] = content
        for path in sorted(self.folder.glob("names-*.json"), key=_age):
            try:
                self._contents.update(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise TrainingError(f"cache {path}: damaged ({error}); remove it") from error

    def remember(self, contents: Mapping[str, str]) -> None:
        """Keeps content hashes that samples were found to have, for ``content_of``.

        Raises:
            TrainingError: They can't be written.
        """
        new = {name: one for name, one in contents.items() if self._contents.get(name) != one}
        if new:
            path = self.folder / f"names-{secrets.token_hex(8)}.json"
            write_file(path, json.dumps(new).encode())
            self._contents.update(new)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def content_of(self, name: str) -> str | None:
        """Content hash that a sample had when it was last read; None where it never was.

        Args:
            name: ``SampleViews.stored_name``.
        """
        return self._contents.get(name)

    def read(self, keys: Sequence[Key], *, pinned: bool = False) -> Tensor:
        """Copies records out of the mapped shards, each in one piece.

        Args:
            keys: B of them, all there.
            pinned: Into memory that a GPU can fetch from.

        Returns:
            (B, record_bytes) uint8.
        """
        shape = (len(keys), self.layout.record_bytes)
        record_BK = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        for row, key in zip(record_BK.numpy(), keys, strict=True):
            shard, place = self._places[key]
            np.copyto(row, self._shards[shard][place])
        return record_BK


class ShardWriter:
    """Appends records to a cache, a shard at a time."""

    def __init__(self, files: CacheFiles, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = files.folder
        self._limit = max(1, shard_bytes // files.layout.record_bytes)
        self._entries: list[tuple[str, str, str]] = []
        self._name = ""
        self._descriptor: int | None = None

    def add(self, keys: Iterable[Key], names: Iterable[str], record_BK: Tensor) -> None:
        """Adds records.

        Raises:
            TrainingError: No room on the disk.
        """
        for key, name, row in zip(keys, names, record_BK.numpy(), strict=True):
            try:
                if self._descriptor is None:
                    self._begin()
                assert self._descriptor is not None
                rest = memoryview(row)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self.abandon()
                raise TrainingError(
                    f"cache {self._folder}: can't be written ({error.strerror or error}); "
                    "finished shards are kept. Make room, or set cache.folder to another disk; "
                    "the next run goes on from there"
                ) from error
            self._entries.append((key.content, key.view, name))
            if len(self._entries) >= self._limit:
                self.finish()

    def finish(self) -> None:
        """Puts the open shard in its place.

        Raises:
            TrainingError: No room on the disk.
        """
        if self._descriptor is None:
            return
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        binary = self._folder / f"{self._name}.bin"
        self._temporary.rename(binary)
        sync_folder(self._folder)
        write_file(binary.with_suffix(".json"), json.dumps(self._entries).encode())
        self._entries = []

    def abandon(self) -> None:
        """Drops the open shard."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._temporary.unlink(missing_ok=True)
            self._entries = []

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{TEMPORARY}{self._name}.bin"

    def _begin(self) -> None:
        self._name = f"shard-{secrets.token_hex(8)}"
        self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Compares what made a cache with what would make it now.

    Raises:
        TrainingError: Names what differs.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cache {path}: can't be read ({error}); remove the folder") from error
    now = json.loads(json.dumps(identity))
    differing = [name for name in {**now, **stored} if stored.get(name) != now.get(name)]
    if differing:
        reasons = "; ".join(
            f"{name}: {stored.get(name)!r} there, {now.get(name)!r} now" for name in differing
        )
        raise TrainingError(
            f"cache {path.parent} was made by another {', '.join(differing)} ({reasons}). Set "
            "cache.folder to another folder, or remove this one"
        )


def _damaged(path: Path, why: str) -> str:
    return f"cache {path}: damaged ({why}); remove this shard's .bin and .json, and run again"

"""TokenCache: a frozen tower's tokens on disk, found by what the tower was shown.

    cache.json               what made the tokens: tower weights, preprocessing, levels, ...
    shard-<id>.safetensors   records, stacked; sealed with their keys and a hash of cache.json

A record is tokens (L, N, D), depth (1, H, W) and intrinsics (4), with a context (D) and the tower's
pixels (3, Y, X) for heads that read them; where views have sizes of their own also its ``size``:
patches (h, w) and pixels (Y, X); of data that has one the depth's weight (1, H, W), 8 bits. Records
of one shape share a shard. A run may read a part of what a cache's records hold. Files appear whole
or not at all, under names of their own, so that several processes and runs may fill one folder.

Axes: B records, L levels, N patch tokens, D width, H W a depth map's size, Y X the tower's input.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.data.items import FULL_WEIGHT
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.training.cache_identity import (
    OPTIONAL,
    checked_identity,
    fingerprint,
    is_spare,
)
from clipdepth_plugin.training.records import WEIGHT, Records
from clipdepth_plugin.training.sealed import DamagedFileError, SealedFile, open_sealed, seal

IDENTITY = "cache.json"
SHARD_BYTES = 128 * 1024 * 1024

_REMOVE = "remove this file, and run again: what it held is computed anew"

Layout = dict[str, tuple[torch.dtype, torch.Size]]
"""Of one record."""


class Key(NamedTuple):
    """What a record is found by: the sample's content hash, and which view of it."""

    content: str
    view: str


class TokenCache:
    """A cache's folder, opened.

    Attributes:
        folder: The folder.
        identity: What its records depend on beside their keys. It may name more ``levels`` than
            were asked for, and a ``context`` or ``pixels`` where none was.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Opens a cache that has what ``identity`` names, or makes one."""
        self.folder = folder
        asked = json.loads(json.dumps(identity))
        self.identity: dict[str, Any] = asked
        self._places: dict[Key, tuple[SealedFile, int]] = {}
        self._opened: set[Path] = set()
        self._checked: set[Path] = set()
        self._layout: Layout = {}
        self._added: dict[str, tuple[list[Key], list[Records]]] = {}
        path = folder / IDENTITY
        if path.exists():
            self.identity = checked_identity(path, asked)
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"cache {folder}: can't be made ({error.strerror})") from error
            write_atomically(path, json.dumps(identity, indent=1).encode(), TrainingError)
        self._unread = {name for name in OPTIONAL if is_spare(name, self.identity, asked)}
        self._rows: list[int] | None = None
        if self.identity.get("levels") != asked.get("levels"):
            self._rows = [self.identity["levels"].index(level) for level in asked["levels"]]
        self.refresh()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Opens the shards that are new, also those of other processes; checks their headers."""
        for path in sorted({*self.folder.glob("shard-*.safetensors")} - self._opened):
            try:
                shard = open_sealed(path)
                keys = self._keys_of(shard)
            except TrainingError as error:
                raise TrainingError(f"cache {error}; {_REMOVE}") from error
            self._places |= {key: (shard, row) for row, key in enumerate(keys)}
            self._opened.add(path)

    def unchecked(self, keys: Iterable[Key]) -> list[SealedFile]:
        """The shards of these records that no earlier call gave, for ``check``."""
        shards = {shard.path: shard for shard, _ in (self._places[key] for key in keys)}
        new = sorted(shards.keys() - self._checked)
        self._checked |= {*new}
        return [shards[path] for path in new]

    def _keys_of(self, shard: SealedFile) -> list[Key]:
        """The keys of a shard of this cache."""
        value = shard.json()
        keys = value.get("keys") if isinstance(value, dict) else None
        if not isinstance(keys, list) or not all(_is_key(key) for key in keys):
            raise DamagedFileError(f"{shard.path}: damaged (no keys in its metadata)")
        if value.get("cache") != fingerprint(self.identity):
            raise TrainingError(f"{shard.path}: of a cache with another {IDENTITY}")
        layout = {name: (x.dtype, x.shape[1:]) for name, x in shard.tensors.items()}
        weight = layout.pop(WEIGHT, None)
        if "size" in layout:
            for name in layout.keys() & {"tokens", "pixels"}:  # whose shapes are each view's own
                layout[name] = layout[name][0], torch.Size()
        self._layout = self._layout or layout
        odd = weight not in (None, (torch.uint8, layout["depth"][1] if "depth" in layout else ()))
        if (
            odd
            or layout != self._layout
            or {x.shape[:1] for x in shard.tensors.values()} != {(len(keys),)}
        ):
            raise DamagedFileError(f"{shard.path}: damaged (other tensors than its keys')")
        return [Key(*key) for key in keys]

    def size_of(self, key: Key) -> list[int] | None:
        """The size of a record's view; None where all are of one size."""
        shard, row = self._places[key]
        size = shard.tensors.get("size")
        if size is None:
            return None
        own: list[int] = size[row].tolist()
        return own

    def read(self, keys: Sequence[Key], *, pinned: bool = False) -> Records:
        """Copies what was asked for of B records of one size out of the shards.

        ``pinned``: into memory that a GPU can fetch from.
        """
        places = [self._places[key] for key in keys]
        records = {}
        for name, stored in places[0][0].tensors.items():
            if name in self._unread or name == WEIGHT:
                continue
            dtype, shape = stored.dtype, stored.shape[1:]
            rows = self._rows if name == "tokens" else None
            axes = shape if rows is None else (len(rows), *shape[1:])
            out = torch.empty((len(keys), *axes), dtype=dtype, pin_memory=pinned)
            # Not torch.stack: its threads would compete with those of the head's step.
            for into, (shard, row) in zip(out, places, strict=True):
                _copy(into, shard.tensors[name][row], rows)
            records[name] = out
        if any(WEIGHT in shard.tensors for shard, _ in places):
            records[WEIGHT] = _weights(places, records["depth"], pinned=pinned)
        return records

    def add(self, keys: Sequence[Key], records: Records) -> None:
        """Adds B records; they are on the disk after ``flush``, or once they fill a shard."""
        shape = str([(name, x.shape[1:]) for name, x in sorted(records.items())])
        known, added = self._added.setdefault(shape, ([], []))
        known += keys
        added.append(records)
        sizes = {shape: _bytes_of(added) for shape, (_, added) in self._added.items()}
        if sum(sizes.values()) >= SHARD_BYTES:
            self._write(max(sizes, key=lambda shape: sizes[shape]))

    def flush(self) -> None:
        """Writes what was added as shards."""
        for shape in [*self._added]:
            self._write(shape)

    def _write(self, shape: str) -> None:
        """Writes the records of one shape as a shard."""
        keys, added = self._added[shape]
        whole = {name: torch.cat([one[name] for one in added]) for name in added[0]}
        path = self.folder / f"shard-{secrets.token_hex(8)}.safetensors"
        text = {"cache": fingerprint(self.identity), "keys": keys}
        write_atomically(path, seal(whole, text), TrainingError)
        del self._added[shape]


def _bytes_of(added: Iterable[Records]) -> int:
    return sum(x.nbytes for one in added for x in one.values())


def _weights(
    places: Sequence[tuple[SealedFile, int]], depth_B1HW: Tensor, *, pinned: bool
) -> Tensor:
    """(B, 1, H, W) uint8 weights of records; those that have none count whole."""
    out = torch.empty(depth_B1HW.shape, dtype=torch.uint8, pin_memory=pinned)
    for into, (shard, row) in zip(out, places, strict=True):
        if WEIGHT in shard.tensors:
            _copy(into, shard.tensors[WEIGHT][row], None)
        else:
            into.fill_(FULL_WEIGHT)
    return out


def _copy(into: Tensor, stored: Tensor, rows: Sequence[int] | None) -> None:
    """Copies a record's tensor, or these rows of it."""
    if rows is None:
        np.copyto(_bytes(into), _bytes(stored))
        return
    for to, row in zip(into, rows, strict=True):
        np.copyto(_bytes(to), _bytes(stored[row]))


def _bytes(x: Tensor) -> NDArray[np.uint8]:
    view: NDArray[np.uint8] = x.view(-1).view(torch.uint8).numpy()
    return view


def check(shard: SealedFile) -> None:
    """Holds a shard against the checksum that was written with it.

    Raises:
        TrainingError: It is damaged.
    """
    try:
        shard.check()
    except TrainingError as error:
        raise TrainingError(f"cache {error}; {_REMOVE}") from error


def _is_key(key: Any) -> bool:
    return isinstance(key, list) and len(key) == 2 and all(isinstance(part, str) for part in key)

"""TokenCache: a frozen tower's tokens on disk, found by what the tower was shown.

    cache.json               what made the tokens: tower weights, preprocessing, levels, ...
    shard-<id>.safetensors   records, stacked; their keys are in the file's metadata

A record is tokens (L, N, D), depth (1, H, W) and intrinsics (4), with a context (D) and the tower's
pixels (3, Y, X) for heads that read them. Files appear whole or not at all, under names of their
own, so that several processes and runs may fill one folder.

Axes: B records, L levels, N patch tokens, D width, H W a depth map's size, Y X the tower's input.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.files.atomic import write_atomically

IDENTITY = "cache.json"
SHARD_BYTES = 128 * 1024 * 1024

Records = dict[str, Tensor]


class Key(NamedTuple):
    """What a record is found by: the sample's content hash, and which view of it."""

    content: str
    view: str


class TokenCache:
    """A cache's folder, opened."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Opens or makes a cache; ``identity``: what its records depend on beside their keys."""
        self.folder = folder
        self._places: dict[Key, tuple[Records, int]] = {}
        self._opened: set[Path] = set()
        self._keys: list[Key] = []
        self._added: list[Records] = []
        path = folder / IDENTITY
        if path.is_file():
            _check_identity(path, identity)
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f"cache {folder}: can't be made ({error.strerror})") from error
            write_atomically(path, json.dumps(identity, indent=1).encode(), TrainingError)
        self.refresh()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Opens the shards that are new, also those of other processes."""
        for path in sorted({*self.folder.glob("shard-*.safetensors")} - self._opened):
            try:
                shard: Any = safe_open(path, framework="pt")
                keys = json.loads(shard.metadata()["keys"])
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise TrainingError(
                    f"cache {path}: damaged ({error}); remove this file, and run again"
                ) from error
            # The tensors are mapped: rows are read from the disk when they are copied.
            parts = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            self._places |= {Key(*key): (parts, row) for row, key in enumerate(keys)}
            self._opened.add(path)

    def read(self, keys: Sequence[Key], *, pinned: bool = False) -> Records:
        """Copies B records out of the shards, ``pinned`` into memory that a GPU can fetch from."""
        places = [self._places[key] for key in keys]
        records = {}
        for name in places[0][0]:
            rows = [parts[name][row] for parts, row in places]
            shape = (len(rows), *rows[0].shape)
            out = torch.empty(shape, dtype=rows[0].dtype, pin_memory=pinned)
            # Not torch.stack: its threads would compete with those of the head's step.
            for into, row in zip(out, rows, strict=True):
                np.copyto(_bytes(into), _bytes(row))
            records[name] = out
        return records

    def add(self, keys: Sequence[Key], records: Records) -> None:
        """Adds B records; they are on the disk after ``flush``, or once they fill a shard."""
        self._keys += keys
        self._added.append(records)
        if sum(x.nbytes for one in self._added for x in one.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was added as a shard."""
        if not self._keys:
            return
        whole = {name: torch.cat([one[name] for one in self._added]) for name in self._added[0]}
        path = self.folder / f"shard-{secrets.token_hex(8)}.safetensors"
        content = safetensors.torch.save(whole, {"keys": json.dumps(self._keys)})
        write_atomically(path, content, TrainingError)
        self._keys, self._added = [], []


def _bytes(x: Tensor) -> NDArray[np.uint8]:
    view: NDArray[np.uint8] = x.view(-1).view(torch.uint8).numpy()
    return view


def to_records(
    features: TowerFeatures,
    depth_B1HW: Tensor,
    intrinsics_B4: Tensor,
    *,
    levels: Sequence[int],
    dtype: torch.dtype,
) -> Records:
    """Records of a batch, on the CPU; tokens and pixels in ``dtype``, everything else float32."""
    tokens_BLND = torch.stack([features.levels[level] for level in levels], dim=1)
    records = {"tokens": tokens_BLND.to(dtype), "depth": depth_B1HW, "intrinsics": intrinsics_B4}
    if features.context is not None:
        records["context"] = features.context.float()
    if features.pixels is not None:
        records["pixels"] = features.pixels.to(dtype)
    return {name: x.cpu().contiguous() for name, x in records.items()}


def features_of(records: Records, levels: Sequence[int], grid: tuple[int, int]) -> TowerFeatures:
    """The features of B records; ``levels`` are the records', in order."""
    tokens = {level: records["tokens"][:, i] for i, level in enumerate(levels)}
    return TowerFeatures(tokens, records.get("context"), grid, records.get("pixels"))


def _check_identity(path: Path, identity: Mapping[str, Any]) -> None:
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

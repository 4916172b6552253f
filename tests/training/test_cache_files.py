"""The token cache's files: records as they were stored, full disks, damaged shards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.training import token_cache
from clipdepth_plugin.training.token_cache import (
    Key,
    Records,
    TokenCache,
    features_of,
    to_records,
)

KEYS = [Key(f"image {i}", "plain") for i in range(5)]


def features(count: int, context: bool = True, pixels: bool = False) -> TowerFeatures:
    generator = torch.Generator().manual_seed(0)
    levels = {k: torch.randn(count, 6, 5, generator=generator) for k in (0, 1, 2)}
    context_BD = torch.randn(count, 5, generator=generator) if context else None
    pixels_B3HW = torch.randn(count, 3, 4, 6, generator=generator) if pixels else None
    return TowerFeatures(levels, context_BD, (2, 3), pixels_B3HW)


def records(read: TowerFeatures, dtype: torch.dtype = torch.float32) -> Records:
    count = read.levels[0].shape[0]
    depth_B1HW, unknown_B4 = torch.arange(count * 15.0), torch.full((count, 4), torch.nan)
    depth_B1HW = depth_B1HW.view(count, 1, 3, 5)
    return to_records(read, depth_B1HW, unknown_B4, levels=(1, 2), dtype=dtype)


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_records_are_read_back_as_they_were_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, context: bool, pixels: bool
) -> None:
    stored = features(5, context, pixels)
    cache, whole = TokenCache(tmp_path, {"format": 1}), records(stored, dtype)
    monkeypatch.setattr(token_cache, "SHARD_BYTES", 1)
    cache.add(KEYS[:2], {name: x[:2] for name, x in whole.items()})
    cache.add(KEYS[2:], {name: x[2:] for name, x in whole.items()})
    cache.refresh()
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2
    order = [3, 0, 4]
    got = TokenCache(tmp_path, {"format": 1}).read([KEYS[i] for i in order])
    assert torch.equal(got["depth"], whole["depth"][order])
    assert got["intrinsics"].isnan().all()
    read = features_of(got, (1, 2), (2, 3))
    for level in (1, 2):
        assert torch.equal(read.levels[level], stored.levels[level][order].to(dtype))
    for now, before in ((read.context, stored.context), (read.pixels, stored.pixels)):
        assert (now is None) == (before is None)
    if read.context is not None and stored.context is not None:
        assert torch.equal(read.context, stored.context[order])
    if read.pixels is not None and stored.pixels is not None:
        assert torch.equal(read.pixels, stored.pixels[order].to(dtype))


def test_a_full_disk_keeps_the_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, whole = TokenCache(tmp_path, {"format": 1}), records(features(5))
    cache.add(KEYS, whole)
    cache.flush()

    def no_room(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        cache.add([Key("another", "plain")], {name: x[:1] for name, x in whole.items()})
        with pytest.raises(TrainingError, match=r"No space left.*was there before is untouched"):
            cache.flush()
    cache.refresh()
    assert all(key in cache for key in KEYS)
    assert Key("another", "plain") not in cache
    assert not [path for path in tmp_path.iterdir() if ".writing" in path.name]


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, {"format": 1})
    cache.add(KEYS, records(features(5)))
    cache.flush()
    shard = next(tmp_path.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=rf"{shard.name}: damaged .*remove this file"):
        cache.refresh()
    (tmp_path / token_cache.IDENTITY).write_text("{")
    with pytest.raises(TrainingError, match=r"not valid JSON .*remove the cache's folder"):
        TokenCache(tmp_path, {"format": 1})

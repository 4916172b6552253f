"""The token cache's files: records as they were stored, full disks, damaged shards."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.training import cache_files
from clipdepth_plugin.training.cache_files import CacheFiles, Key, ShardWriter
from clipdepth_plugin.training.cache_layout import RecordLayout

LAYOUT = RecordLayout((1, 2), (2, 3), 5, True, (4, 6), torch.float32)


def records(count: int, seed: int = 0) -> tuple[TowerFeatures, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = {k: torch.randn(count, 6, 5, generator=generator) for k in (1, 2)}
    context = torch.randn(count, 5, generator=generator)
    depth_B1HW = torch.rand(count, 1, 4, 6, generator=generator)
    return TowerFeatures(levels, context, (2, 3)), depth_B1HW, torch.full((count, 4), torch.nan)


def test_a_full_disk_keeps_the_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CacheFiles.open(tmp_path, {"format": 1}, LAYOUT)
    writer = ShardWriter(files, 2 * LAYOUT.record_bytes)
    record_BK = LAYOUT.pack(*records(3))
    keys = [Key(f"image {i}", "plain") for i in range(3)]
    writer.add(keys[:2], ["0", "1"], record_BK[:2])

    def no_room(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room)
        with pytest.raises(TrainingError, match=r"No space left.*finished shards are kept"):
            writer.add(keys[2:], ["2"], record_BK[2:])
    files.refresh()
    assert keys[0] in files
    assert keys[1] in files
    assert keys[2] not in files
    assert not [path for path in tmp_path.iterdir() if ".writing" in path.name]


def test_records_are_read_back_as_they_were_stored(tmp_path: Path) -> None:
    files = CacheFiles.open(tmp_path, {"format": 1}, LAYOUT)
    features, depth_B1HW, intrinsics_B4 = records(5)
    keys = [Key(f"image {i}", "plain") for i in range(5)]
    writer = ShardWriter(files, 2 * LAYOUT.record_bytes)
    writer.add(keys, map(str, range(5)), LAYOUT.pack(features, depth_B1HW, intrinsics_B4))
    writer.finish()
    files.refresh()
    assert len(list(tmp_path.glob("shard-*.bin"))) == 3
    order = [3, 0, 4]
    read, depth, intrinsics = LAYOUT.unpack(files.read([keys[i] for i in order]))
    for level in (1, 2):
        assert torch.equal(read.levels[level], features.levels[level][order])
    assert read.context is not None
    assert features.context is not None
    assert torch.equal(read.context, features.context[order])
    assert torch.equal(depth, depth_B1HW[order])
    assert intrinsics.isnan().all()


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_of_odd_sizes(dtype: torch.dtype, context: bool) -> None:
    layout = RecordLayout((2,), (2, 3), 5, context, (3, 5), dtype)
    features, _, intrinsics_B4 = records(2)
    depth_B1HW = torch.rand(2, 1, 3, 5)
    record_BK = layout.pack(features, depth_B1HW, intrinsics_B4)
    assert record_BK.shape == (2, layout.record_bytes)
    read, depth, _ = layout.unpack(record_BK)
    assert torch.equal(read.levels[2], features.levels[2].to(dtype))
    assert torch.equal(depth, depth_B1HW)
    assert (read.context is not None) == context
    assert read.pixels is None

    with_pixels = dataclasses.replace(layout, pixel_size=(4, 6))
    pixels_B3HW = torch.randn(2, 3, 4, 6)
    features = dataclasses.replace(features, pixels=pixels_B3HW)
    read, depth, _ = with_pixels.unpack(with_pixels.pack(features, depth_B1HW, intrinsics_B4))
    assert torch.equal(read.levels[2], features.levels[2].to(dtype))
    assert read.pixels is not None
    assert torch.equal(read.pixels, pixels_B3HW.to(dtype))
    assert torch.equal(depth, depth_B1HW)


def test_a_cut_shard_is_reported(tmp_path: Path) -> None:
    files = CacheFiles.open(tmp_path, {"format": 1}, LAYOUT)
    writer = ShardWriter(files)
    writer.add([Key("a", "plain")], ["a"], LAYOUT.pack(*records(1)))
    writer.finish()
    shard = next(tmp_path.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=rf"{shard.name}: damaged .*for 1 records"):
        files.refresh()
    (tmp_path / cache_files.IDENTITY).write_text("{")
    with pytest.raises(TrainingError, match="can't be read"):
        CacheFiles.open(tmp_path, {"format": 1}, LAYOUT)

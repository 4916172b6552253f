"""The token cache's files: records as they were stored, full disks, damaged shards."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.training import token_cache
from clipdepth_plugin.training.records import Records, features_of, to_records
from clipdepth_plugin.training.sealed import open_sealed, seal
from clipdepth_plugin.training.token_cache import Key, TokenCache, check

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


PARTS = {"levels": [1, 2], "context": "mean", "pixels": [4, 6]}


@pytest.mark.parametrize(
    ("asked", "levels"),
    [
        ({}, [1, 2]),
        ({"levels": [2]}, [2]),
        ({"levels": [2], "context": None}, [2]),
        ({"levels": [1], "context": None, "pixels": None}, [1]),
    ],
)
def test_a_part_of_each_record_is_read(
    tmp_path: Path, asked: dict[str, Any], levels: list[int]
) -> None:
    stored = features(5, context=True, pixels=True)
    cache = TokenCache(tmp_path, PARTS)
    cache.add(KEYS, records(stored))
    cache.flush()
    asked = {**PARTS, **asked}
    got = TokenCache(tmp_path, asked).read([KEYS[3], KEYS[0]])
    read = features_of(got, levels, (2, 3))
    for level in levels:
        assert torch.equal(read.levels[level], stored.levels[level][[3, 0]])
    assert got["tokens"].shape[1] == len(levels)
    assert ("context" in got, "pixels" in got) == (bool(asked["context"]), bool(asked["pixels"]))
    assert got["depth"].shape == (2, 1, 3, 5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"levels": [0, 2]}, "levels"),
        ({"levels": [1]}, "levels"),  # a mean of level 2
        ({"context": "pooled"}, "context"),
        ({"pixels": [8, 6]}, "pixels"),
        ({"levels": None}, "levels"),
        ({"levels": [2], "grid": [3, 3]}, "grid"),
    ],
)
def test_a_cache_that_lacks_a_part_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    TokenCache(tmp_path, PARTS)
    with pytest.raises(TrainingError, match=f"made by another {reason} "):
        TokenCache(tmp_path, {**PARTS, **changes})


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


Change = Callable[[Path, Path], object]
"""Of a shard of two records, with a shard of another cache at hand."""


def flip(place: bytes | int) -> Change:
    """Flips a bit at a place, or at that of a text."""

    def change(shard: Path, _: Path) -> None:
        content = bytearray(shard.read_bytes())
        content[content.index(place) if isinstance(place, bytes) else place] ^= 16
        shard.write_bytes(content)

    return change


def reseal(change: Callable[[dict[str, Any]], object], *left_out: str) -> Change:
    """Changes a shard's text, and seals it again."""

    def changed(shard: Path, _: Path) -> None:
        sealed = open_sealed(shard)
        value = sealed.json()
        result = change(value)
        tensors = {name: x.clone() for name, x in sealed.tensors.items() if name not in left_out}
        shard.write_bytes(seal(tensors, value if result is None else result))

    return changed


def to_folder(shard: Path, _: Path) -> None:
    shard.unlink()
    shard.mkdir()


DAMAGE: dict[str, tuple[Change, str]] = {
    "a bit of the first token": (flip(-(2 * 2 * 6 * 5 * 4)), "damaged .*sha256"),
    "a bit of the last token": (flip(-1), "damaged .*sha256"),
    "a bit of a key": (flip(b"image 4"), "damaged .*sha256"),
    "truncated": (lambda one, _: one.write_bytes(one.read_bytes()[:-1]), "damaged"),
    "empty": (lambda one, _: one.write_bytes(b""), "damaged"),
    "longer": (lambda one, _: one.write_bytes(one.read_bytes() + b"0"), "damaged"),
    "a folder": (to_folder, "can't be read"),
    "another cache's": (lambda one, other: shutil.copy(other, one), "another cache.json"),
    "not ours": (lambda one, _: save_file({"tokens": torch.ones(2)}, one), "damaged"),
    "keys of numbers": (reseal(lambda text: text.update(keys=[1, 2])), "damaged .no keys"),
    "keys of another length": (reseal(lambda text: text["keys"].pop() and None), "other tensors"),
    "a list for a text": (reseal(lambda _: [1]), "damaged .no keys"),
    "no keys": (reseal(lambda text: text.pop("keys") and None), "damaged .no keys"),
    "no depth": (reseal(lambda _: None, "depth"), "other tensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_shard_that_is_not_what_was_written_is_named(tmp_path: Path, name: str) -> None:
    folder, shards = tmp_path / "cache", list[Path]()
    for rows, where in ((slice(3), folder), (slice(3, 5), folder), (slice(3, 5), tmp_path / "x")):
        cache = TokenCache(where, {"format": 1, "levels": [1, where.name]})
        before = {*where.glob("shard-*")}
        cache.add(KEYS[rows], {name: x[rows] for name, x in records(features(5)).items()})
        cache.flush()
        shards += {*where.glob("shard-*")} - before
    change, message = DAMAGE[name]
    kept, damaged = folder / "shard-0.safetensors", folder / "shard-1.safetensors"
    shards[0].rename(kept)
    shards[1].rename(damaged)
    change(damaged, shards[2])

    def use() -> None:
        opened = TokenCache(folder, {"format": 1, "levels": [1, "cache"]})
        for shard in opened.unchecked(key for key in KEYS if key in opened):
            check(shard)

    for _ in range(2):
        with pytest.raises(TrainingError, match=rf"{damaged.name}: .*{message}.*remove this file"):
            use()
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
    use()  # the others' are still there


def test_a_shard_is_checked_once_and_only_if_it_is_needed(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, {"format": 1})
    for row, key in enumerate(KEYS):
        cache.add([key], {name: x[row : row + 1] for name, x in records(features(5)).items()})
        cache.flush()
    cache.refresh()
    assert len(cache.unchecked(KEYS[:2])) == 2
    assert len(cache.unchecked(KEYS[:3])) == 1
    assert cache.unchecked(KEYS[:3]) == []


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "3", "null", '"text"', "[" * 5000, "{", "\ufffe", "{}"),
        *('{"format": NaN}', '{"format": 2}', '{"format": 1, "more": [' + "1," * 500 + "1]}"),
        '{"format": 1' + "0" * 6000 + "}",
    ],
    ids=lambda text: text[:12],
)
def test_a_tampered_identity_is_refused_in_a_few_words(tmp_path: Path, text: str) -> None:
    (tmp_path / token_cache.IDENTITY).write_text(text)
    with pytest.raises(TrainingError, match=r"cache .*(remove|folder)") as caught:
        TokenCache(tmp_path, {"format": 1})
    assert len(str(caught.value)) < 1500
    assert (tmp_path / token_cache.IDENTITY).read_text() == text

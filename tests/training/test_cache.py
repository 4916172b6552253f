"""The token cache: the same training without the tower, refused where it does not fit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.errors import DataError, TrainingError
from clipdepth_plugin.features import Run
from clipdepth_plugin.files.atomic import TEMPORARY
from clipdepth_plugin.training import cache_fill, cached, token_cache
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.token_cache import TokenCache
from clipdepth_plugin.training.tower import FrozenTower

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

FLIP_ONLY = {
    "flip": 0.5,
    "rotation_degrees": 0.0,
    "gamma": [1, 1],
    "brightness": [1, 1],
    "colour": [1, 1],
}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every pass of the tower."""
    seen: list[int] = []
    reader = FrozenTower.reader

    def counted(self: FrozenTower, *args: Any) -> Any:
        read = reader(self, *args)

        def read_and_count(views: Sequence[torch.Tensor]) -> list[Run]:
            seen.append(len(views))
            return read(views)

        return read_and_count

    monkeypatch.setattr(FrozenTower, "reader", counted)
    return seen


def cache_of(tiny: TinyRuns, **options: Any) -> dict[str, Any]:
    folder = tiny.folder / options.pop("folder", "cache")
    return {"folder": str(folder), "dtype": "float32", **options}


@contextlib.contextmanager
def black_picture(tiny: TinyRuns) -> Iterator[None]:
    """One training picture is another one meanwhile."""
    (picture,) = Path(tiny.data).glob("train/*/002.jpg")
    before = picture.read_bytes()
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(picture)
    try:
        yield
    finally:
        picture.write_bytes(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_cached_run_is_the_uncached_run(
    tiny: TinyRuns, passes: list[int], dtype: str, tolerance: float
) -> None:
    train(tiny.config("plain", augment=FLIP_ONLY))
    passes.clear()
    heard = tiny.config("cached", augment=FLIP_ONLY, cache=cache_of(tiny, dtype=dtype))
    result = train(heard)
    plain, cached = tiny.losses("plain"), tiny.losses("cached")
    assert cached[1] == pytest.approx(plain[1], abs=tolerance)
    for step, loss in plain.items():
        assert cached[step] == pytest.approx(loss, abs=50 * tolerance)
    assert result.abs_rel is not None
    # 7 training pictures, each plain and flipped, and 3 validation pictures.
    assert sum(passes) == 2 * 7 + 3


def test_a_set_varied_in_its_own_way_is_cached_so(tiny: TinyRuns) -> None:
    data = dict(tiny.tree("any")["data"])
    data["train"] = [{**data["train"][0], "augment": {**FLIP_ONLY, "flip": 1.0}}]
    never = {**FLIP_ONLY, "flip": 0.0}
    train(tiny.config("plain", data=data, augment=never))
    cache = cache_of(tiny, dtype="float32")
    train(tiny.config("cached", data=data, augment=never, cache=cache))
    train(tiny.config("other", augment=never, cache=cache))
    assert tiny.losses("cached") == pytest.approx(tiny.losses("plain"), abs=1e-4)
    assert tiny.losses("other") != pytest.approx(tiny.losses("plain"), abs=1e-4)


def test_pixels_are_cached_for_heads_that_read_them(tiny: TinyRuns, passes: list[int]) -> None:
    """Plain and mirrored, those that whole patches cover; a head without reads the rest."""
    options = {"channels": [8, 8, 8], "film_hidden": 8, "stem_channels": 4}
    common: dict[str, Any] = {"augment": FLIP_ONLY, "loss": {"auxiliary": []}}
    guided = {"preset": "guided", "options": options}
    train(tiny.config("plain", head=guided, **common))
    passes.clear()
    train(tiny.config("cached", head=guided, cache=cache_of(tiny), **common))
    assert sum(passes) == 2 * 7 + 3
    plain, cached = tiny.losses("plain"), tiny.losses("cached")
    assert [cached[step] for step in plain] == pytest.approx(list(plain.values()), abs=1e-5)
    fast = {"preset": "fast", "options": {**options, "stem_channels": 0}}
    passes.clear()
    train(tiny.config("other", head=fast, cache=cache_of(tiny), **common))
    assert not passes
    train(tiny.config("alone", head=fast, cache=cache_of(tiny, folder="cache-alone"), **common))
    with pytest.raises(TrainingError, match=r"another pixels \(pixels: None there, \[28, 28\] now"):
        train(
            tiny.config("more", head=guided, cache=cache_of(tiny, folder="cache-alone"), **common)
        )


def test_a_head_reads_its_part_of_a_cache_that_holds_more(
    tiny: TinyRuns, passes: list[int]
) -> None:
    """Records that are missing get all that the others have, so that both heads can go on."""
    common: dict[str, Any] = {"augment": FLIP_ONLY, "loss": {"auxiliary": []}}
    few = {"options": {**tiny.head, "semantic_levels": [2, 2], "structural": False, "film": False}}
    del few["options"]["structural_levels"], few["options"]["film_hidden"]
    train(tiny.config("plain", head=few, **common))
    train(tiny.config("whole", cache=cache_of(tiny), **common))
    with black_picture(tiny):
        passes.clear()
        train(tiny.config("part", head=few, cache=cache_of(tiny), **common))
        assert sum(passes) == 2
        passes.clear()
        train(tiny.config("again", cache=cache_of(tiny), **common))
        assert not passes
    train(tiny.config("cached", head=few, cache=cache_of(tiny), **common))
    expected = pytest.approx(list(tiny.losses("plain").values()), abs=1e-4)
    assert list(tiny.losses("cached").values()) == expected
    shallow = {"options": {**few["options"], "semantic_levels": [1, 1], "film": True}}
    mean = {"options": {**shallow["options"], "context": "mean"}}
    with pytest.raises(TrainingError, match="made by another levels, context"):
        train(tiny.config("mean", head=mean, cache=cache_of(tiny), **common))


def test_the_tower_is_not_run_again(tiny: TinyRuns, passes: list[int]) -> None:
    train(tiny.config("first", cache=cache_of(tiny)))
    first = tiny.losses("first")
    passes.clear()
    train(tiny.config("second", cache=cache_of(tiny)))
    assert passes == []
    assert tiny.losses("second") == first


def test_a_picture_that_changes_while_the_cache_is_filled_is_refused(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = cache_fill.fill_cache

    def late(*arguments: Any, **options: Any) -> None:
        with black_picture(tiny):
            fill(*arguments, **options)

    monkeypatch.setattr(cached, "fill_cache", late)
    with pytest.raises(DataError, match="002: its files have changed since they were hashed"):
        train(tiny.config("run", cache=cache_of(tiny)))
    monkeypatch.undo()
    train(tiny.config("plain", augment=None))
    train(tiny.config("again", augment=None, cache=cache_of(tiny)))
    expected = pytest.approx(list(tiny.losses("plain").values()), abs=1e-4)
    assert list(tiny.losses("again").values()) == expected


def test_a_whole_cache_that_cannot_be_written_to_is_used(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are found by content, wherever the set is now."""
    train(tiny.config("first", cache=cache_of(tiny)))
    moved = tiny.folder / "moved" / "other-name"
    shutil.copytree(tiny.data, moved)
    monkeypatch.setattr(token_cache, "write_atomically", lambda *_: pytest.fail("written"))
    data = {**tiny.tree("any")["data"]}
    data = {part: [{**data[part][0], "root": str(moved)}] for part in data}
    train(tiny.config("second", data=data, cache=cache_of(tiny)))
    assert tiny.losses("second") == tiny.losses("first")


def test_a_cached_run_resumes_bit_for_bit(tiny: TinyRuns) -> None:
    train(tiny.config("run", steps=7, checkpoint_every=2, cache=cache_of(tiny)))
    losses = tiny.losses("run")
    for step in (6, 7):
        (tiny.folder / "run" / "checkpoints" / f"step-{step:08d}.safetensors").unlink()
    train(tiny.config("run", steps=7, checkpoint_every=2, cache=cache_of(tiny)), resume=True)
    assert tiny.losses("run") == losses


def test_k_views(tiny: TinyRuns, passes: list[int]) -> None:
    train(tiny.config("run", steps=9, cache=cache_of(tiny, views=4)))
    assert sum(passes) == 4 * 7 + 3
    one = tiny.config("one", steps=9, cache=cache_of(tiny, views=1), augment=None)
    passes.clear()
    train(one)
    assert passes == []  # the plain views are there
    assert tiny.losses("one") != tiny.losses("run")


def test_only_changed_pictures_are_computed_again(
    tiny: TinyRuns, passes: list[int], tmp_path: Path
) -> None:
    train(tiny.config("first", cache=cache_of(tiny)))
    passes.clear()
    with black_picture(tiny):
        train(tiny.config("second", cache=cache_of(tiny)))
    assert sum(passes) == 2
    assert tiny.losses("second") != tiny.losses("first")


def test_a_cache_of_another_tower_or_preprocessing_is_refused(
    tiny: TinyRuns, other_host: str
) -> None:
    train(tiny.config("first", cache=cache_of(tiny)))
    with pytest.raises(TrainingError, match=r"was made by another tower weights .*cache\.folder"):
        train(tiny.config("other", cache=cache_of(tiny), host=other_host))
    with pytest.raises(TrainingError, match=r"made by another output size \(.*16, 16.*12, 12"):
        train(tiny.config("other", cache=cache_of(tiny), output_size=[12, 12]))
    with pytest.raises(TrainingError, match="made by another dtype"):
        train(tiny.config("other", cache=cache_of(tiny, dtype="bfloat16")))
    options = {**tiny.head, "semantic_levels": [1, 1]}
    train(tiny.config("few", cache=cache_of(tiny, folder="cache-few"), head={"options": options}))
    with pytest.raises(TrainingError, match=r"another levels \(levels: \[0, 1\] there"):
        train(tiny.config("other", cache=cache_of(tiny, folder="cache-few")))
    processor = Path(other_host, "preprocessor_config.json")
    kept = processor.read_text()
    processor.write_text(kept.replace("0.25", "0.3"))
    try:
        with pytest.raises(TrainingError, match="made by another tower weights, preprocessing"):
            train(tiny.config("other", cache=cache_of(tiny), host=other_host))
    finally:
        processor.write_text(kept)
    assert not (tiny.folder / "other").exists()


def test_an_interrupted_build_goes_on(
    tiny: TinyRuns, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "SHARD_BYTES", 1)
    add, added = TokenCache.add, [0]

    def add_until_killed(self: TokenCache, keys: Any, *rest: Any) -> None:
        added[0] += len(keys)
        if added[0] > 8:
            raise KeyboardInterrupt
        add(self, keys, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TokenCache, "add", add_until_killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny.config("run", cache=cache_of(tiny)))
    passes.clear()
    train(tiny.config("run", cache=cache_of(tiny)))
    assert sum(passes) == 2 * 7 + 3 - 8


def test_the_identity_is_json(tiny: TinyRuns) -> None:
    train(tiny.config("run", cache=cache_of(tiny)))
    identity = json.loads((tiny.folder / "cache" / "cache.json").read_text())
    assert identity["preprocessing"]["size"] == [28, 28]
    assert identity["levels"] == [0, 1, 2]
    assert len(identity["tower weights"]) == 64


def test_a_flipped_bit_in_cached_tokens_is_not_trained_on(tiny: TinyRuns) -> None:
    train(tiny.config("first", cache=cache_of(tiny)))
    shard = max((tiny.folder / "cache").glob("shard-*"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    for name in ("second", "third"):
        with pytest.raises(TrainingError, match=rf"{shard.name}: damaged .*remove this file"):
            train(tiny.config(name, cache=cache_of(tiny)))
    shard.unlink()
    train(tiny.config("second", cache=cache_of(tiny)))
    assert tiny.losses("second") == tiny.losses("first")


def test_two_builders_of_one_cache_store_everything_once(
    tiny: TinyRuns, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first fills; the leftovers of a killed one go."""
    monkeypatch.setattr(cache_fill, "_WAIT", 0.01)
    folder = tiny.folder / "cache"
    folder.mkdir()
    (folder / f"{TEMPORARY}abcd").write_bytes(b"half a shard")
    fill, both = cache_fill.fill_cache, threading.Barrier(2, timeout=60)
    wait, waited = cache_fill._try_to_hold, list[str]()

    def fill_slowly(*arguments: Any) -> None:
        both.wait()  # until the other waits
        fill(*arguments)

    def try_to_hold(*arguments: Any) -> str | None:
        holder = wait(*arguments)
        if holder is not None and not waited:
            waited.append(holder)
            both.wait()
            monkeypatch.setattr(cached, "fill_cache", fill)
        return holder

    monkeypatch.setattr(cached, "fill_cache", fill_slowly)
    monkeypatch.setattr(cache_fill, "_try_to_hold", try_to_hold)
    with ThreadPoolExecutor(2) as pool:
        runs = [tiny.config(name, cache=cache_of(tiny)) for name in ("first", "second")]
        list(pool.map(train, runs))
    assert waited == [f"process {os.getpid()} on {socket.gethostname()}"]
    assert sum(passes) == 2 * 7 + 3
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"cache.json", "shard"}

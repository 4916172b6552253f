"""Tar shards and Hugging Face data sets give the same samples, shuffled and split alike."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import AugmentConfig, Batch, DataConfig, StreamDataset, open_dataset
from clipdepth_plugin.data.stream import Record
from clipdepth_plugin.data.stream_loader import StreamLoader
from clipdepth_plugin.errors import DataError
from tests.training.data.conftest import make

if TYPE_CHECKING:
    from tests.training.data.conftest import Trees

pytest.importorskip("webdataset")


def opened(config: DataConfig) -> StreamDataset:
    data = open_dataset(config)
    assert isinstance(data, StreamDataset)
    return data


def batches(data: Any, preprocessing: Preprocessing, **options: Any) -> list[Batch]:
    made = make(data, preprocessing, **{"epoch": 0, "augment": AugmentConfig(), **options})
    assert isinstance(made, StreamLoader)
    return list(made)


def names(found: list[Batch]) -> list[str]:
    return [name for batch in found for name in batch.names]


def test_tar(trees: Trees, truth: Any) -> None:
    data = opened(trees.tar())
    samples = list(data)
    assert len(samples) == 8
    assert samples[5].name == "train-01/005"
    assert samples[5].intrinsics == (30.0, 31.0, 15.5, 11.5)
    torch.testing.assert_close(samples[5].depth_1HW[0], torch.from_numpy(truth(5)))
    assert samples[5].image_3HW[2, 0, 0] == 50
    assert [one.name for one in opened(trees.tar(limit=3))] == [
        *("train-00/000", "train-00/001", "train-00/002")
    ]


def test_shuffling_is_seeded_and_complete(trees: Trees, squash: Preprocessing) -> None:
    config = trees.tar(shuffle_buffer=3)
    first, again, later = (names(batches([config], squash, epoch=e)) for e in (0, 0, 1))
    assert first == again
    assert sorted(first) == sorted(later) == [f"train-{i // 4:02d}/{i:03d}" for i in range(8)]
    assert first != later != sorted(later)
    assert names(batches([config], squash, shuffle=False)) == sorted(first)


def test_a_limit_takes_the_first_ones_in_every_epoch(trees: Trees, squash: Preprocessing) -> None:
    config = trees.tar(shards=4, each=2, limit=3)
    for epoch in range(4):
        found = names(batches([config], squash, epoch=epoch, batch_size=1))
        assert sorted(found) == ["train-00/000", "train-00/001", "train-01/002"]


def test_threads_processes_and_resuming_change_nothing(trees: Trees, squash: Preprocessing) -> None:
    config = trees.tar(shuffle_buffer=3)
    whole = batches([config], squash, batch_size=4)
    for found in (
        batches([config], squash, batch_size=4, workers=2),
        [batches([config], squash, batch_size=4, start_batch=1)[0]],
    ):
        for a, b in zip(found, whole[-len(found) :], strict=True):
            assert a.names == b.names
            assert torch.equal(a.pixels_B3HW, b.pixels_B3HW)
    ranks = [batches([config], squash, rank=rank, world_size=2) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert ranks[0][number].names + ranks[1][number].names == batch.names
        joined_B3HW = torch.cat([ranks[0][number].pixels_B3HW, ranks[1][number].pixels_B3HW])
        assert torch.equal(joined_B3HW, batch.pixels_B3HW)


def test_last_batches(trees: Trees, squash: Preprocessing) -> None:
    config = trees.tar()
    assert [len(one) for one in batches([config], squash, batch_size=3)] == [3, 3]
    kept = batches([config], squash, batch_size=3, drop_last=False)
    assert [len(one) for one in kept] == [3, 3, 2]
    ranks = [
        batches([config], squash, batch_size=3, drop_last=False, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert [[len(one) for one in rank] for rank in ranks] == [[3, 1], [3, 1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_may_be_varied_in_its_own_way(
    trees: Trees, squash: Preprocessing, workers: int
) -> None:
    never, always = (AugmentConfig(flip=flip, probability=0.0) for flip in (0.0, 1.0))
    plain, own = (
        batches([trees.tar(augment=one)], squash, augment=never, shuffle=False, workers=workers)
        for one in (None, always)
    )
    assert torch.equal(own[0].pixels_B3HW, plain[0].pixels_B3HW.flip(3))


def test_streams_interleave(trees: Trees, squash: Preprocessing) -> None:
    few = trees.tar(name="few", limit=2)
    mixed = batches([few, trees.tar(name="many", repeat=3)], squash, shuffle=False)
    found = names(mixed)
    parts = [part for batch in mixed for part in batch.parts_B.tolist()]
    assert parts == [int(name.startswith("many")) for name in found]
    assert sorted(found)[:3] == ["few/train-00/000", "few/train-00/001", "many/train-00/000"]
    assert len(found) == 10
    shares = [trees.tar(name=name, limit=8, share=share) for name, share in (("a", 1), ("b", 3))]
    weighed = [trees.tar(name=name, limit=8, repeat=share) for name, share in (("a", 1), ("b", 3))]
    mixed = batches(shares, squash)
    assert names(mixed) == names(batches(weighed, squash))


def test_damaged_records_and_shards(
    trees: Trees, squash: Preprocessing, caplog: pytest.LogCaptureFixture
) -> None:
    config = trees.tar()
    shard = Path(config.root.replace("{00..01}", "01"))
    whole = shard.read_bytes()
    at = whole.index(b"IDAT")
    shard.write_bytes(whole[:at] + b"\0" * 40 + whole[at + 40 :])
    with caplog.at_level(logging.WARNING):
        found = batches([config], squash, shuffle=False, bad_file_limit=1)
    assert found[2].names == ["train-01/005", "train-01/005"]
    assert "train-01/004 can't be used" in caplog.text
    with pytest.raises(DataError, match="bad_file_limit = 0"):
        batches([config], squash, workers=2)
    shard.write_bytes(whole[: at + 200])
    found = batches([config], squash, shuffle=False, bad_file_limit=3, drop_last=False)
    assert names(found)[:4] == [f"train-00/00{i}" for i in range(4)]
    assert "the shard is damaged" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": "pipe:cat x.tar"}, "commands are not run"),
        ({"root": "nowhere-{0..3}.tar"}, r"nowhere-0\.tar: no such tar file"),
    ],
)
def test_tar_addresses_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(DataConfig(format="webdataset", **options))


def test_units_and_columns(trees: Trees) -> None:
    whole_numbers = opened(trees.tar(depth_scale=None))
    with pytest.raises(DataError, match="set depth_scale"):
        next(iter(whole_numbers))
    with pytest.raises(DataError, match="has no depth; check image_column"):
        next(iter(opened(trees.tar(depth_column="z.png"))))
    assert next(iter(opened(trees.tar(depth="z.png", depth_column="z.png")))).depth_1HW.any()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"[1, 2, 3, 4]", (1.0, 2.0, 3.0, 4.0)),
        (b'{"intrinsics": [1, 2, 3, 4]}', (1.0, 2.0, 3.0, 4.0)),
        ([[1, 0, 3], [0, 2, 4], [0, 0, 1]], (1.0, 2.0, 3.0, 4.0)),
        (None, None),
        (b"[1, 2", "intrinsics"),
        ([1, 2, 3], "intrinsics: got"),
        ([-1, 2, 3, 4], "fx and fy positive"),
        ([[1, 0.1, 3], [0, 2, 4], [0, 0, 1]], r"expected K as \[\[fx, 0, cx\]"),
        ({"K": 1}, "intrinsics"),
    ],
)
def test_cameras_of_records(trees: Trees, value: Any, expected: Any) -> None:
    data = opened(trees.tar())
    record = next(data.records())._replace(intrinsics=value)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            data.decode(record)
    else:
        assert data.decode(record).intrinsics == expected


@pytest.mark.parametrize("package", ["webdataset", "datasets"])
def test_missing_packages_name_the_extra(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    config = trees.tar() if package == "webdataset" else DataConfig(format="hf", root="org/set")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"package {package}: .*clipdepth-plugin\[stream\]"):
        open_dataset(config)


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


METRES = np.full((24, 32), 2.5, np.float32)
MILLIMETRES = (METRES * 1000).astype(np.uint16)


@pytest.mark.parametrize(
    ("scale", "depth"),
    [
        (1000, Image.fromarray(MILLIMETRES)),
        (1000, MILLIMETRES.tolist()),
        (1000, npy(MILLIMETRES)),
        (None, npy(METRES)),
        (None, METRES[None]),
        (None, METRES[:, :, None]),
        (None, Image.fromarray(METRES)),
    ],
)
def test_depth_of_every_kind(trees: Trees, scale: float | None, depth: Any) -> None:
    data = opened(trees.tar(depth_scale=scale))
    pixels_HW3 = np.full((24, 32, 3), 9, np.uint8)
    for image in (pixels_HW3, Image.fromarray(pixels_HW3)):
        sample = data.decode(Record("one", image, depth))
        assert sample.depth_1HW.unique().tolist() == [2.5]
        assert sample.image_3HW.unique().tolist() == [9]


@pytest.mark.parametrize(
    ("image", "depth", "words"),
    [
        (np.zeros((24, 32), np.uint8), METRES, "the picture has shape"),
        (np.zeros((24, 32, 3), np.uint8), np.zeros((2, 24, 32)), "one map"),
        (np.zeros((24, 32, 3), np.uint8), npy(np.array(["x"])), "depth has shape"),
        (np.zeros((24, 32, 3), np.uint8), npy(METRES)[:99], "the depth map is damaged"),
        (np.zeros((24, 33, 3), np.uint8), METRES, "must lie pixel on pixel"),
    ],
)
def test_records_that_are_not_rgb_and_depth(
    trees: Trees, image: Any, depth: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        opened(trees.tar()).decode(Record("one", image, depth))


def test_arrays_of_objects_are_not_unpickled(trees: Trees) -> None:
    pickled = npy(np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        opened(trees.tar()).decode(Record("one", np.zeros((1, 1, 3), np.uint8), pickled))

"""Batches are the same for any number of workers and processes, and survive bad files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from clipdepth_plugin.adapters.pixels import normalised
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.aspect_grids import AspectGrid
from clipdepth_plugin.data import (
    AugmentConfig,
    Batch,
    DataConfig,
    SampleDataset,
    ViewMaker,
    open_dataset,
    open_mixture,
)
from clipdepth_plugin.data.augment import augment, sample_generator
from clipdepth_plugin.data.items import SampleViews
from clipdepth_plugin.data.loader import Loader
from clipdepth_plugin.data.views import make_view
from clipdepth_plugin.errors import DataError
from tests.training.data.conftest import make

if TYPE_CHECKING:
    from tests.training.data.conftest import Trees


def loader(data: Any, preprocessing: Preprocessing, **options: Any) -> Loader:
    made = make(data, preprocessing, **{"augment": AugmentConfig(probability=1.0), **options})
    assert isinstance(made, Loader)
    return made


def assert_same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.names == b.names
        for field in ("pixels_B3HW", "depth_B1HW", "parts_B"):
            assert torch.equal(getattr(a, field), getattr(b, field))
        torch.testing.assert_close(a.intrinsics_B4, b.intrinsics_B4, equal_nan=True)


def test_a_batch(trees: Trees, squash: Preprocessing, truth: Any) -> None:
    made = loader([trees.rgbd()], squash, augment=None, shuffle=False)
    batches = list(made)
    assert len(made) == len(batches) == 3
    batch = batches[1]
    assert len(batch) == 2
    assert batch.names == ["rooms/train/a/002", "rooms/train/b/003"]
    assert (batch.pixels_B3HW.shape, batch.pixels_B3HW.dtype) == ((2, 3, 16, 16), torch.float32)
    assert (batch.depth_B1HW.shape, batch.depth_B1HW.dtype) == ((2, 1, 12, 20), torch.float32)
    # 24 x 32 squashed to 16 x 16: the camera is in pixels of the tower's input.
    expected = torch.tensor([30 / 2, 31 / 1.5, 7.5, 12 / 1.5 - 0.5])
    torch.testing.assert_close(batch.intrinsics_B4[0], expected)
    assert batch.depth_B1HW[0].max() == pytest.approx(truth(2).max(), abs=2e-3)
    moved = batch.to("meta")
    assert moved.pixels_B3HW.device.type == "meta"
    assert moved.names == batch.names


def test_unknown_cameras_are_nan(trees: Trees, squash: Preprocessing) -> None:
    config = trees.rgbd(meta={"intrinsics": {}})
    assert next(iter(loader([config], squash))).intrinsics_B4.isnan().all()


def test_workers_and_processes_change_nothing(trees: Trees, squash: Preprocessing) -> None:
    data = open_mixture([trees.rgbd(), trees.nyu(count=5, repeat=1.5)])
    whole = list(loader(data, squash, batch_size=4))
    assert len(whole) == 3
    for batch in whole:
        assert batch.parts_B.tolist() == [int(name.startswith("nyu")) for name in batch.names]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert_same(loader(data, squash, batch_size=4, workers=2), whole)
    assert torch.equal(torch.get_rng_state(), before)
    ranks = [list(loader(data, squash, batch_size=2, rank=r, world_size=2)) for r in (0, 1)]
    for number, batch in enumerate(whole):
        halves = [ranks[rank][number] for rank in (0, 1)]
        assert halves[0].names + halves[1].names == batch.names
        both_B3HW = torch.cat([half.pixels_B3HW for half in halves])
        assert torch.equal(both_B3HW, batch.pixels_B3HW)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_the_middle(trees: Trees, squash: Preprocessing, workers: int) -> None:
    config = trees.rgbd(count=9)
    whole = list(loader([config], squash))
    rest = loader([config], squash, start_batch=2, workers=workers)
    Path(config.root, "train").rename(Path(config.root, "elsewhere"))
    Path(config.root, "elsewhere").rename(Path(config.root, "train"))
    assert len(rest) == 2
    assert_same(rest, whole[2:])
    assert list(loader([config], squash, start_batch=99)) == []


def test_skipped_batches_are_not_read(trees: Trees, squash: Preprocessing) -> None:
    config = trees.rgbd(count=6)
    Path(config.root, "train/a/000.depth.png").unlink()
    data = open_mixture([config], bad_file_limit=1)
    rest = list(loader(data, squash, shuffle=False, start_batch=1))
    assert rest[0].names[0].endswith("a/002")


def test_epochs_differ_and_augmentation_goes_with_the_sample(
    trees: Trees, squash: Preprocessing
) -> None:
    config = trees.rgbd()
    first, second = (list(loader([config], squash, epoch=epoch)) for epoch in (0, 1))
    assert [batch.names for batch in first] != [batch.names for batch in second]
    straight = next(iter(loader([config], squash, epoch=0, shuffle=False, batch_size=6)))
    for batch in first:
        for row, name in enumerate(batch.names):
            there = straight.names.index(name)
            assert torch.equal(batch.pixels_B3HW[row], straight.pixels_B3HW[there])
    data = open_dataset(config)
    assert isinstance(data, SampleDataset)
    view = make_view(data[4], squash, (12, 20))
    view, _ = augment(view, AugmentConfig(probability=1.0), sample_generator(3, 0, 4))
    assert torch.equal(straight.pixels_B3HW[4], normalised(view.rgb_3HW, squash))


def fixed(config: DataConfig, preprocessing: Preprocessing, view: int) -> torch.Tensor:
    """Pixels of every sample in a view of a fixed number."""
    augment = AugmentConfig(probability=1.0)
    data = open_dataset(config)
    assert isinstance(data, SampleDataset)
    views = SampleViews(data, ViewMaker(preprocessing, (12, 20), augment, 3))
    return torch.stack(
        [views.view(i, view, views.content(i)).pixels_3HW for i in range(len(views))]
    )


def test_fixed_views(trees: Trees, squash: Preprocessing) -> None:
    config = trees.rgbd()
    plain, mirrored, third, fourth = (fixed(config, squash, view) for view in range(4))
    unvaried = next(iter(loader([config], squash, augment=None, shuffle=False, batch_size=6)))
    assert torch.equal(plain, unvaried.pixels_B3HW)
    assert torch.equal(mirrored, plain.flip(3))
    assert not torch.equal(third, fourth)
    assert torch.equal(fixed(config, squash, 2), third)
    # Flipping alone gives one of the two views, bit for bit.
    only = AugmentConfig(rotation_degrees=0, gamma=(1, 1), brightness=(1, 1), colour=(1, 1))
    options: dict[str, Any] = {"shuffle": False, "batch_size": 6, "epoch": 2}
    live = next(iter(loader([config], squash, augment=only, **options))).pixels_B3HW
    views = [[plain[row], mirrored[row]] for row in range(6)]
    picked = [[torch.equal(one, live[row]) for one in views[row]] for row in range(6)]
    assert {*map(tuple, picked)} == {(True, False), (False, True)}


def test_views_for_a_cache(trees: Trees, squash: Preprocessing) -> None:
    config = trees.rgbd()
    data = open_dataset(config)
    assert isinstance(data, SampleDataset)
    views = SampleViews(data, ViewMaker(squash, (12, 20), AugmentConfig(), seed=3))
    batch = next(iter(loader([config], squash, augment=None, shuffle=False)))
    item = views.view(1, 0, views.content(1))
    assert torch.equal(item.pixels_3HW, batch.pixels_B3HW[1])
    assert torch.equal(item.depth_1HW, batch.depth_B1HW[1])
    assert torch.equal(item.intrinsics_4, batch.intrinsics_B4[1])
    assert len({views.content(index) for index in range(len(views))}) == 6
    before = views.content(2)
    Path(config.root, "train/a/002.png").write_bytes(
        Path(config.root, "train/a/001.png").read_bytes()
    )
    assert views.content(2) != before
    assert views.name(2) == "rooms/train/a/002"
    assert len({views.view_key(0, view) for view in range(4)}) == 4
    assert views.view_key(0, 3) == views.view_key(5, 3)


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize("is_tiled", [False, True])
def test_the_key_of_a_cache_says_which_view_it_is(
    trees: Trees, squash: Preprocessing, view: int, *, is_tiled: bool
) -> None:
    """Wherever the sample lies: a limit moves it."""
    tiles = replace(squash, resize=None, view_rules=(AspectGrid(squash.size, 4, 4),))
    preprocessing = tiles if is_tiled else squash
    whole, some = (
        SampleViews(
            open_mixture([trees.rgbd(count=8, limit=limit)]),  # type: ignore[arg-type]
            ViewMaker(preprocessing, (12, 20), AugmentConfig(probability=1.0), 3),
        )
        for limit in (None, 4)
    )
    places = {whole.name(index): index for index in range(len(whole))}
    for index in range(len(some)):
        place, content = places[some.name(index)], some.content(index)
        assert whole.content(place) == content
        assert whole.view_key(place, view) == some.view_key(index, view)
        ours, theirs = some.view(index, view, content), whole.view(place, view, content)
        assert torch.equal(ours.pixels_3HW, theirs.pixels_3HW)
        assert torch.equal(ours.depth_1HW, theirs.depth_1HW)


def test_a_damaged_calibration_is_a_bad_sample_of_a_cache(
    trees: Trees, squash: Preprocessing
) -> None:
    config = trees.kitti(count=2)
    (calibration,) = Path(config.root).rglob("calib_cam_to_cam.txt")
    calibration.write_text("P_rect_02: none\n")
    views = SampleViews(open_mixture([config]), ViewMaker(squash, (12, 20)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="P_rect_02"):
        views.content(0)


def test_a_set_may_be_varied_in_its_own_way(trees: Trees, squash: Preprocessing) -> None:
    lens = AugmentConfig(flip=1.0, probability=0.0)
    sets = [trees.rgbd(), trees.nyu(augment=lens)]
    run = AugmentConfig(flip=0.0, probability=0.0)
    straight, given = (
        next(iter(loader(sets, squash, augment=augment, shuffle=False, batch_size=10)))
        for augment in (None, run)
    )
    assert torch.equal(given.pixels_B3HW[:6], straight.pixels_B3HW[:6])
    assert torch.equal(given.pixels_B3HW[6:], straight.pixels_B3HW[6:].flip(3))
    views = SampleViews(open_mixture(sets), ViewMaker(squash, (12, 20), run, seed=3))  # type: ignore[arg-type]
    assert [views.augment_of(index) for index in (5, 6)] == [run, lens]
    assert views.view_key(5, 2) != views.view_key(6, 2)
    assert views.view_key(5, 1) == views.view_key(6, 1)
    for index in range(10):
        pixels_3HW = views.view(index, 2, views.content(index)).pixels_3HW
        assert torch.equal(pixels_3HW, given.pixels_B3HW[index])


def test_so_may_the_samples_that_a_limit_leaves(trees: Trees, squash: Preprocessing) -> None:
    always, never = (AugmentConfig(flip=flip, probability=0.0) for flip in (1.0, 0.0))
    options: dict[str, Any] = {"augment": never, "shuffle": False, "batch_size": 2}
    own, plain = (
        next(iter(loader([trees.nyu(augment=augment, limit=3)], squash, **options)))
        for augment in (always, None)
    )
    assert torch.equal(own.pixels_B3HW, plain.pixels_B3HW.flip(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_replaced_up_to_a_limit(
    trees: Trees, squash: Preprocessing, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = trees.rgbd()
    Path(config.root, "train/a/001.png").write_bytes(b"not a picture")
    Path(config.root, "train/a/002.depth.png").unlink()
    options: dict[str, Any] = {"shuffle": False, "workers": workers}
    made = loader([config], squash, bad_file_limit=2, **options)
    with caplog.at_level(logging.WARNING):
        batches = list(made)
    # The next good one takes the place, in its own view.
    found = [name.rpartition("/")[2] for batch in batches for name in batch.names]
    assert found == ["000", "003", "003", "003", "004", "005"]
    assert torch.equal(batches[0].pixels_B3HW[1], batches[1].pixels_B3HW[1])
    assert list(made.bad.reasons) == ["rooms/train/a/001", "rooms/train/a/002"]
    assert caplog.text.count("rooms/train/a/001 can't be used") == 1
    assert "(2 of at most 2)" in caplog.text
    assert "002.depth.png: no such file" in caplog.text
    data = open_mixture([config], bad_file_limit=1)
    with pytest.raises(DataError, match="more than bad_file_limit = 1") as caught:
        list(loader(data, squash, bad_file_limit=1, **options))
    assert "\n  rooms/train/a/001: " in str(caught.value)
    assert "\n  rooms/train/a/002: " in str(caught.value)
    with pytest.raises(DataError, match="bad_file_limit = 0"):
        list(loader(data, squash, **options))


def test_nothing_can_be_read(trees: Trees, squash: Preprocessing) -> None:
    config = trees.rgbd(count=2)
    for path in Path(config.root).rglob("*.depth.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no sample of the set can be read"):
        list(loader([config], squash, bad_file_limit=10))

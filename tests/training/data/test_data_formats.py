"""Files of every format become the same samples, or are refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.data import (
    DataConfig,
    Mixture,
    SampleDataset,
    StreamDataset,
    open_dataset,
    open_mixture,
)
from clipdepth_plugin.data.files import pixels_of, read_image
from clipdepth_plugin.errors import ClipDepthError, DataError, ImageError

if TYPE_CHECKING:
    from tests.training.data.conftest import Trees

CAMERA = (30.0, 31.0, 15.5, 11.5)


def opened(config: DataConfig) -> SampleDataset:
    data = open_dataset(config)
    assert not isinstance(data, StreamDataset)
    return data


def test_rgbd(trees: Trees, truth: Any) -> None:
    data = opened(trees.rgbd())
    assert len(data) == 6
    sample = data[4]
    assert sample.name == data.name(4) == "rooms/train/b/004"
    assert sample.image_3HW.shape == (3, 24, 32)
    assert sample.image_3HW.dtype == torch.uint8
    assert sample.image_3HW[:, 3, 7].tolist() == [14, 6, 40]
    assert sample.depth_1HW.dtype == torch.float32
    torch.testing.assert_close(sample.depth_1HW[0], torch.from_numpy(truth(4)))
    assert sample.intrinsics == CAMERA
    assert [one.name for one in data] == [data.name(index) for index in range(6)]
    with pytest.raises(IndexError):
        data[6]


def test_rgbd_cameras_by_frame_sequence_and_config(trees: Trees) -> None:
    sequence = {"train/a": {"intrinsics": None}, "train/b": {"intrinsics": [9, 9, 1, 1]}}
    data = opened(trees.rgbd("by-sequence", meta={"sequences": sequence}))
    assert [data[0].intrinsics, data[5].intrinsics] == [None, (9.0, 9.0, 1.0, 1.0)]
    config = trees.rgbd("by-frame", cameras=True)
    assert [sample.intrinsics[0] for sample in opened(config) if sample.intrinsics] == [
        *(30.0, 31.0, 32.0, 33.0, 34.0, 35.0)
    ]
    given = config.model_copy(update={"intrinsics": (1.0, 2.0, 3.0, 4.0)})
    assert opened(given)[0].intrinsics == (1.0, 2.0, 3.0, 4.0)


BY_SOURCE: dict[str, Any] = {
    "sequences": {"train/a": {"source": "free"}, "train/b": {"source": "bound"}},
    "sources": {
        "free": {"redistributable": "yes"},
        "bound": {"redistributable": "yes, with attribution"},
    },
}
BY_SEQUENCE: dict[str, Any] = {
    "sequences": {
        "train/a": {"source": "bound", "redistributable": "yes"},
        "train/b": {"source": "free", "redistributable": "unclear"},
    },
    "sources": BY_SOURCE["sources"],
}


@pytest.mark.parametrize("meta", [BY_SOURCE, BY_SEQUENCE])
def test_rgbd_keeps_only_what_may_be_passed_on(meta: dict[str, Any], trees: Trees) -> None:
    names = [one.name for one in opened(trees.rgbd(meta=meta, redistributable=True))]
    assert names == ["rooms/train/a/000", "rooms/train/a/001", "rooms/train/a/002"]
    others = [one.name for one in opened(trees.rgbd(meta=meta, redistributable=False))]
    assert others
    assert all(name.startswith("rooms/train/b/") for name in others)
    with pytest.raises(DataError, match="redistributable; leave out"):
        open_dataset(trees.rgbd("silent", redistributable=True))


def test_folds_of_an_rgbd_set_share_no_sequence(tmp_path: Path, trees: Trees) -> None:
    config = trees.rgbd()
    for number in range(40):
        shutil.copytree(config.path("train/a"), config.path(f"train/more-{number}"))

    def sequences(fold: str | None) -> set[str]:
        data = open_dataset(config.model_copy(update={"fold": fold}))
        assert isinstance(data, SampleDataset)
        return {data.name(index).split("/")[-2] for index in range(len(data))}

    parts = [sequences(f"{number}/3") for number in (1, 2, 3)]
    assert all(parts)
    assert set.union(*parts) == sequences(None)
    assert sum(map(len, parts)) == len(sequences(None)) == 42
    assert sequences("not 2/3") == parts[0] | parts[2]
    with pytest.raises(ValueError, match="no part"):
        DataConfig.model_validate({**config.model_dump(), "fold": "4/3"})
    with pytest.raises(DataError, match="in fold 7/9999"):
        sequences("7/9999")


def test_folds_of_each_sequence_are_runs_of_its_frames(trees: Trees) -> None:
    def names(fold: str) -> list[str]:
        return [one.name.rpartition("train/")[2] for one in opened(trees.rgbd(fold, fold=fold))]

    assert names("2/3 of each") == ["a/001", "b/004"]
    assert names("not 2/3 of each") == ["a/000", "a/002", "b/003", "b/005"]
    for wrong in ("1/1", "0/3", "1/3 of", "of each", "not not 1/3"):
        with pytest.raises(ValueError, match="no part"):
            names(wrong)


def test_rgbd_keeps_only_frames_whose_camera_is_known(trees: Trees) -> None:
    meta = {"sequences": {"train/a": {"intrinsics": None}}}
    names = [one.name for one in opened(trees.rgbd(meta=meta, with_camera=True))]
    assert names == ["rooms/train/b/003", "rooms/train/b/004", "rooms/train/b/005"]
    given = trees.rgbd("given", meta=meta, with_camera=True, intrinsics=(1.0, 2.0, 3.0, 4.0))
    assert len(opened(given)) == 6
    both = {"sequences": {"train/a": {"intrinsics": None}, "train/b": {"intrinsics": None}}}
    with pytest.raises(DataError, match=r"no frames .* whose intrinsics are known"):
        open_dataset(trees.rgbd("none", meta=both, with_camera=True))


def test_range_and_limit(trees: Trees) -> None:
    near = opened(trees.rgbd(max_depth=1.11, min_depth=1.1))
    assert [bool(one.depth_1HW.any()) for one in near] == [False, True, False, False, False, False]
    depth = near[1].depth_1HW
    assert depth[depth > 0].min() >= 1.1
    assert depth.max() <= 1.11
    farthest = opened(trees.rgbd("meta", meta={"max_depth_m": 1.2}))
    assert not farthest[3].depth_1HW.any()
    few = opened(trees.rgbd("few", limit=3))
    assert [few.name(index)[-3:] for index in range(len(few))] == ["000", "002", "004"]
    assert len(opened(trees.rgbd("all", limit=99))) == 6


def test_rgbd_folder_errors(trees: Trees, tmp_path: Path) -> None:
    config = trees.rgbd()
    root = Path(config.root)
    with pytest.raises(DataError, match=r"no such split; .* has train"):
        open_dataset(config.model_copy(update={"split": "val"}))
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(config.model_copy(update={"root": str(tmp_path / "nowhere")}))
    (root / "train" / "a" / "intrinsics.json").write_text(json.dumps({"000": CAMERA}))
    with pytest.raises(DataError, match="no entry for frame 001"):
        open_dataset(config)
    (root / "train" / "a" / "intrinsics.json").write_text("[")
    with pytest.raises(DataError, match="is not valid JSON"):
        open_dataset(config)
    (root / "meta.json").write_text(json.dumps({"depth_scale": 0}))
    with pytest.raises(DataError, match="depth_scale"):
        open_dataset(config)
    (root / "meta.json").unlink()
    with pytest.raises(DataError, match=r"meta\.json: no such file"):
        open_dataset(config)
    (root / "train" / "a" / "intrinsics.json").unlink()
    assert len(opened(config.model_copy(update={"depth_scale": 1000.0}))) == 6
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="no frames"):
        open_dataset(config.model_copy(update={"depth_scale": 1000.0, "split": "empty"}))


def test_two_pictures_of_a_frame_are_refused(trees: Trees) -> None:
    config = trees.rgbd()
    folder = Path(config.root, "train", "a")
    for kind in ("colour", "confidence", "undistorted", "inverse"):
        Image.new("L", (32, 24)).save(folder / f"000.{kind}.png")
    assert len(opened(config)) == 6
    Image.new("RGB", (32, 24)).save(folder / "000.jpg")
    with pytest.raises(DataError, match=r"a/000\.jpg and .*a/000\.png: are two pictures of one"):
        open_dataset(config)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _grey(path: Path) -> None:
    Image.new("L", (32, 24), 7).save(path)


def _other_size(path: Path) -> None:
    Image.fromarray(np.ones((5, 4), np.uint16)).save(path)


@pytest.mark.parametrize(
    ("suffix", "harm", "words"),
    [
        (".depth.png", _cut, "damaged"),
        (".depth.png", _grey, "expected 16-bit grey"),
        (".depth.png", _other_size, "must lie pixel on pixel"),
        (".png", _cut, "damaged"),
        (".png", lambda path: path.write_bytes(b""), "empty"),
    ],
)
def test_bad_files_are_named(trees: Trees, suffix: str, harm: Any, words: str) -> None:
    config = trees.rgbd()
    path = Path(config.root, "train", "a", f"001{suffix}")
    harm(path)
    data = opened(config)
    assert len(data) == 6
    with pytest.raises(ClipDepthError, match=words) as caught:
        data[1]
    assert isinstance(caught.value, DataError | ImageError)
    assert "a/001." in str(caught.value)
    assert data[0].depth_1HW.any()


def test_nyu(trees: Trees, truth: Any) -> None:
    data = opened(trees.nyu())
    sample = data[2]
    assert sample.name == data.name(2) == "nyu/train/bathroom/rgb_00002"
    torch.testing.assert_close(sample.depth_1HW[0], torch.from_numpy(truth(2)))
    # The list's focal length is of the full picture, 20 times as large.
    assert sample.intrinsics is not None
    fx, fy, cx, cy = sample.intrinsics
    assert (fx, fy) == pytest.approx((518.8579 / 20, 519.46961 / 20))
    assert ((cx + 0.5) * 20 - 0.5, (cy + 0.5) * 20 - 0.5) == pytest.approx((325.58245, 253.73617))
    other = opened(trees.nyu(focal="600"))[0].intrinsics
    assert other == pytest.approx((30.0, 30.0, 15.5, 11.5))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("part", ["", "train", "val"])
def test_kitti(trees: Trees, truth: Any, suffix: str, part: str) -> None:
    data = opened(trees.kitti(suffix=suffix, part=part))
    assert len(data) == 4  # the line without depth is left out
    sample = data[3]
    assert sample.name.endswith("2011_09_26_drive_0001_sync/image_02/data/0000000003")
    depth_HW = torch.from_numpy(truth(3))
    torch.testing.assert_close(sample.depth_1HW[0], depth_HW, atol=1 / 512, rtol=0)
    assert sample.intrinsics is not None
    # The calibration is of 1242 x 375 pictures.
    assert sample.intrinsics[:2] == pytest.approx((720 * 32 / 1242, 720 * 24 / 375))
    assert sample.intrinsics[2] == pytest.approx(610.5 * 32 / 1242 - 0.5)


def test_kitti_crop_moves_the_camera(trees: Trees, truth: Any) -> None:
    size = (375, 1242)
    whole = opened(trees.kitti(count=1, size=size))[0]
    sample = opened(trees.kitti(count=1, size=size, crop="kb"))[0]
    assert whole.intrinsics == (720.0, 720.0, 610.0, 170.0)
    assert sample.image_3HW.shape == (3, 352, 1216)
    assert sample.intrinsics == (720.0, 720.0, 610.0 - 13, 170.0 - 23)
    assert torch.equal(sample.depth_1HW, whole.depth_1HW[:, 23:, 13:1229])
    assert torch.equal(sample.image_3HW, whole.image_3HW[:, 23:, 13:1229])
    with pytest.raises(DataError, match="needs a picture of at least"):
        opened(trees.kitti(count=1, crop="kb"))[0]


def test_kitti_without_calibration_says_so(trees: Trees, caplog: pytest.LogCaptureFixture) -> None:
    data = opened(trees.kitti(calibration=False))
    with caplog.at_level(logging.WARNING):
        cameras = {sample.intrinsics for sample in data}
    assert cameras == {(721.5377, 721.5377, 15.5, 11.5)}
    assert caplog.text.count("calib_cam_to_cam.txt: no such file") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png b.png 5 6\n", r"list\.txt:1: expected"),
        ("a.png b.png 5\n\na.png b.png five\n", r"list\.txt:3: the focal length 'five'"),
        ("a.png None 5\n", "names no picture that has depth"),
    ],
)
def test_bad_lists(trees: Trees, text: str, words: str) -> None:
    config = trees.nyu()
    Path(config.root, "list.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        open_dataset(config)


def test_missing_parts_of_listed_sets(trees: Trees) -> None:
    config = trees.nyu()
    with pytest.raises(DataError, match="no such list"):
        open_dataset(config.model_copy(update={"files": "lists.txt"}))
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(config.model_copy(update={"depth_root": "depths"}))


def test_mixtures_count_on(trees: Trees) -> None:
    data = open_mixture([trees.rgbd(), trees.nyu(repeat=2)])
    assert isinstance(data, SampleDataset)
    assert (data.counts, data.repeats) == ((6, 4), (1.0, 2.0))
    assert [data.name(index) for index in (0, 5, 6, 9)] == [
        *("rooms/train/a/000", "rooms/train/b/005"),
        *("nyu/train/bathroom/rgb_00000", "nyu/train/bathroom/rgb_00003"),
    ]
    assert data[7].name == data.name(7)
    with pytest.raises(DataError, match="no data set given"):
        open_mixture([])
    with pytest.raises(DataError, match="can't be mixed"):
        open_mixture([trees.rgbd(), trees.tar()])


def test_a_grey_picture_is_the_same_from_a_file_its_bytes_and_memory(tmp_path: Path) -> None:
    """16 bits are scaled, never clipped."""
    path = tmp_path / "grey.png"
    grey = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16))
    grey.save(path)
    expected = read_image(path, "")
    assert int(expected.max()) == round(63000 / 257)
    assert torch.equal(read_image(path.read_bytes(), "grey"), expected)
    assert torch.equal(pixels_of(grey, "grey"), expected)
    Image.fromarray(np.full((2, 2), 2.5, np.float32)).save(tmp_path / "bright.tif")
    with pytest.raises(ImageError, match=r"memory: float32 grey values from 2\.5"):
        read_image((tmp_path / "bright.tif").read_bytes(), "memory")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_to_be_turned_is_refused(tmp_path: Path, orientation: int) -> None:
    """Of a half turn the sizes say nothing, and depth would lie upside down on it."""
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (8, 8))
    picture.save(path, exif=exif)
    message = rf"turned.*EXIF orientation {orientation}"
    with pytest.raises(DataError, match=message):
        read_image(path, "")
    with pytest.raises(DataError, match=message):
        read_image(path.read_bytes(), "turned")
    with Image.open(path) as opened, pytest.raises(DataError, match=message):
        pixels_of(opened, "turned")
    exif[0x0112] = 1
    picture.save(path, exif=exif)
    assert read_image(path, "").shape == (3, 8, 8)


def test_shares_weigh_sets_whatever_their_sizes(trees: Trees) -> None:
    data = open_mixture([trees.rgbd(count=6, share=30), trees.nyu(count=4, share=70)])
    assert isinstance(data, Mixture)
    assert data.repeats == pytest.approx((0.5, 1.75))
    with pytest.raises(DataError, match=r"rooms: share: 1 of 1001 gives it not one of an epoch"):
        open_mixture([trees.rgbd(share=1), trees.nyu(share=1000)])

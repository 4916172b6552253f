"""The official labelled file: transposed arrays, numbers from 1, train and test from splits.mat."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clipdepth_plugin.data import DataConfig, SampleDataset, open_dataset
from clipdepth_plugin.errors import DataError

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")
COUNT, SIZE = 5, (24, 32)


@pytest.fixture
def mat(tmp_path: Path) -> Path:
    """Five frames as MATLAB's v7.3 files hold them: (N, 3, W, H) and (N, W, H)."""
    path = tmp_path / "labelled.mat"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 3, SIZE[1], SIZE[0]), dtype=np.uint8)
    raw = rng.uniform(0.5, 9, (COUNT, SIZE[1], SIZE[0])).astype(np.float32)
    raw[:, 3, 4] = 0
    with h5py.File(path, "w") as file:
        file["images"], file["rawDepths"], file["depths"] = images, raw, np.maximum(raw, 1)
    scipy_io.savemat(
        tmp_path / "splits.mat",
        {"trainNdxs": np.array([[1], [3], [4]]), "testNdxs": np.array([[2], [5]])},
    )
    return path


def opened(path: Path, **options: Any) -> SampleDataset:
    data = open_dataset(
        DataConfig(format="nyu_mat", root=str(path), **{"files": "splits.mat", **options})
    )
    assert isinstance(data, SampleDataset)
    return data


def test_frames(mat: Path) -> None:
    data = opened(mat, split="test")
    assert [data.name(index) for index in range(len(data))] == [
        *("labelled.mat/test/0002", "labelled.mat/test/0005")
    ]
    sample = data[1]
    with h5py.File(mat) as file:
        image_3HW = file["images"][4].transpose(0, 2, 1)
        depth_HW = file["rawDepths"][4].T
    assert np.array_equal(sample.image_3HW.numpy(), image_3HW)
    assert np.array_equal(sample.depth_1HW[0].numpy(), depth_HW)
    assert sample.depth_1HW[0, 4, 3] == 0
    assert sample.intrinsics is not None
    assert sample.intrinsics[0] == pytest.approx(518.8579 / 20)
    assert opened(mat, depth_key="depths", split="test")[1].depth_1HW[0, 4, 3] == 1
    assert len(opened(mat)) == 3
    assert len(opened(mat, split="all", files=None)) == COUNT


def test_a_text_file_of_numbers(mat: Path) -> None:
    (mat.parent / "mine.txt").write_text("5\n1\n")
    data = opened(mat, split="test", files="mine.txt")
    assert [data.name(0)[-4:], data.name(1)[-4:]] == ["0005", "0001"]


@pytest.mark.parametrize("text", ["0\n", "6\n", "2\n2\n", "", "two\n"])
def test_wrong_numbers(mat: Path, text: str) -> None:
    (mat.parent / "mine.txt").write_text(text)
    with pytest.raises(DataError, match="frame number"):
        opened(mat, split="test", files="mine.txt")


def test_wrong_files(mat: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.mat: no such file"):
        opened(mat.parent / "nowhere.mat")
    with pytest.raises(DataError, match="no such file; files is the official"):
        opened(mat, files="split.mat")
    with pytest.raises(DataError, match="not an HDF5 file"):
        opened(mat.parent / "splits.mat")
    (mat.parent / "bad.mat").write_bytes(b"not MATLAB" * 50)
    with pytest.raises(DataError, match="can't be read as a MATLAB file"):
        opened(mat, files="bad.mat")
    scipy_io.savemat(mat.parent / "other.mat", {"x": 1})
    with pytest.raises(DataError, match="has no 'trainNdxs'"):
        opened(mat, files="other.mat")
    with h5py.File(mat, "a") as file:
        del file["rawDepths"]
    with pytest.raises(DataError, match="has no 'rawDepths', only"):
        opened(mat)[0]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("images", None, "'images' is no array"),
        ("images", np.zeros((4, 3, 8, 6), np.float32), "of uint8"),
        ("rawDepths", None, "'rawDepths' is no array"),
        ("rawDepths", np.ones((1, 8)), r"rawDepths are \(1, 8\)"),
    ],
)
def test_arrays_of_other_shapes(mat: Path, key: str, value: Any, words: str) -> None:
    with h5py.File(mat, "a") as file:
        del file[key]
        if value is None:
            file.create_group(key)
        else:
            file[key] = value
    with pytest.raises(DataError, match=words):
        opened(mat)


def test_other_processes_open_the_file_for_themselves(mat: Path) -> None:
    data = opened(mat)
    here = data[0]
    assert torch.equal(pickle.loads(pickle.dumps(data))[0].image_3HW, here.image_3HW)  # noqa: S301
    loader = DataLoader(data, batch_size=None, num_workers=2)
    for index, sample in enumerate(loader):
        assert torch.equal(sample.depth_1HW, data[index].depth_1HW)


def test_a_missing_package_names_the_extra(mat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"h5py: pip install \"clipdepth-plugin\[train\]\""):
        opened(mat)

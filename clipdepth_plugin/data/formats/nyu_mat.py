"""NYU Depth V2's official labelled file, nyu_depth_v2_labeled.mat (HDF5, 1449 frames).

Which frames are train (795) and test (654) stands in the official splits.mat, or in a text file
with one number a line; both count frames from 1.

Axes: N frames, H W pixels; the file holds them transposed.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipdepth_plugin.data.config import DataConfig, expand, register_format
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.files import DepthUnit, SampleMaker, require
from clipdepth_plugin.data.sample import NYU_CAMERA, NYU_SIZE, Sample, rescaled
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.paths import check_file, read_text

_FARTHEST = 10.0
_NO_SPLIT = "no such file; files is the official splits.mat or a text file of numbers"
_KEYS = {"train": "trainNdxs", "test": "testNdxs"}


def _check(config: DataConfig) -> None:
    if config.split not in (*_KEYS, "all"):
        raise ValueError(f"split: nyu_mat has train, test and all, got {config.split!r}")
    if config.split == "all" and config.files is not None:
        raise ValueError("files: does nothing with split: all; leave one of the two out")
    if config.split != "all" and config.files is None:
        raise ValueError(
            "files: nyu_mat needs the official splits.mat or a text file of image numbers to "
            "know which are train and test; or say split: all"
        )


@register_format("nyu_mat", reads={"files", "depth_key", "crop"}, check=_check)
class NyuMat(SampleDataset):
    """Frames of the labelled file, in the order of the split's list."""

    def __init__(self, config: DataConfig) -> None:
        """Opens the file and reads the split."""
        self._config = config
        self._path = Path(config.location())
        self._unit = DepthUnit.of(config, 1.0, _FARTHEST)
        self._make = SampleMaker(config)
        self._open: tuple[int, Any] | None = None
        images, depths = self._array("images"), self._array(config.depth_key)
        shape: tuple[int, ...] = getattr(images, "shape", ())
        depth_shape: tuple[int, ...] = getattr(depths, "shape", ())
        if len(shape) != 4 or shape[1] != 3 or images.dtype != np.uint8:
            raise DataError(f"{self._path}: images are {shape}, expected (N, 3, W, H) of uint8")
        if depth_shape != (shape[0], *shape[2:]) or depths.dtype.kind not in "uif":
            raise DataError(
                f"{self._path}: {config.depth_key} are {depth_shape}, expected (N, W, H) of "
                f"numbers as images have it, {(shape[0], *shape[2:])}"
            )
        self._count = shape[0]
        if config.split == "all":
            self._numbers = np.arange(1, self._count + 1)
        else:
            assert config.files is not None
            self._numbers = self._checked(self._path.parent / expand(config.files))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # an open HDF5 file can't go to another process

    def name(self, index: int) -> str:
        """``<set>/<split>/<number from 1, as in splits.mat>``."""
        number = self._numbers[index]
        return f"{self._config.title}/{self._config.split}/{number:04d}"

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        row = int(self._numbers[index]) - 1
        what = f"{self._path}: frame {row + 1}"
        try:
            image_3WH = self._array("images")[row]
            depth_WH = self._array(self._config.depth_key)[row]
        except OSError as error:
            raise DataError(f"{what} can't be read ({error}); download the file again") from error
        image_3HW = torch.from_numpy(np.ascontiguousarray(image_3WH.transpose(0, 2, 1)))
        depth_1HW = self._unit.metres(np.ascontiguousarray(depth_WH.T))
        height, width = depth_1HW.shape[1:]
        camera = rescaled(NYU_CAMERA, NYU_SIZE, (height, width))
        name = self.name(index)
        return self._make(image_3HW, depth_1HW, camera, name, what=what, camera_from=what)

    def _array(self, key: str) -> Any:
        """An HDF5 data set. Every process opens the file for itself: handles don't survive fork."""
        h5py = require("h5py", "train", "nyu_mat")
        if self._open is None or self._open[0] != os.getpid():
            check_file(self._path, DataError, "no such file; root is nyu_depth_v2_labeled.mat")
            try:
                self._open = (os.getpid(), h5py.File(self._path, "r"))
            except OSError as error:
                raise DataError(
                    f"{self._path}: not an HDF5 file, or cut short ({error}); root is "
                    "nyu_depth_v2_labeled.mat, to be downloaded again where it is that"
                ) from error
        file = self._open[1]
        if key not in file:
            raise DataError(f"{self._path}: has no {key!r}, only {', '.join(file)}")
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise DataError(f"{self._path}: {key!r} is a link, maybe into another file; copy it in")
        array = file[key]
        if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
            raise DataError(f"{self._path}: {key!r} is no array of this file's own")
        return array

    def _checked(self, path: Path) -> NDArray[np.int64]:
        numbers = _split_numbers(path, self._config.split)
        wrong = numbers[(numbers < 1) | (numbers > self._count)]
        if wrong.size or not numbers.size or len(np.unique(numbers)) != len(numbers):
            first = f", e.g. {wrong[0]}" if wrong.size else ""
            raise DataError(
                f"{path}: expected different frame numbers of 1 to {self._count}{first}; numbers "
                "count from 1 as in splits.mat"
            )
        return numbers


def _split_numbers(path: Path, split: str) -> NDArray[np.int64]:
    check_file(path, DataError, _NO_SPLIT)
    if path.suffix.lower() != ".mat":
        words = read_text(path, DataError).replace(",", " ").split()
        try:
            return np.array([int(word.strip('"')) for word in words], np.int64)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}: expected one frame number a line ({error})") from error
    scipy_io = require("scipy.io", "train", "splits.mat")
    try:
        numbers = scipy_io.loadmat(path, variable_names=[_KEYS[split]])[_KEYS[split]]
    except KeyError as error:
        raise DataError(f"{path}: has no {_KEYS[split]!r}; is it the official one?") from error
    except Exception as error:  # scipy's readers raise almost anything on a damaged file
        raise DataError(
            f"{path}: can't be read as a MATLAB file ({type(error).__name__}: {error})"
        ) from error
    flat = np.asarray(numbers, dtype=np.float64).ravel()
    if not all(math.isfinite(one) and one == int(one) for one in flat):
        raise DataError(f"{path}: {_KEYS[split]} are not whole numbers")
    return flat.astype(np.int64)

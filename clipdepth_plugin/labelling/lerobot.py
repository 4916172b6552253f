"""LeRobot data sets (v3), through the package's own reader: the camera frames of each episode.

The package needs Python 3.12.

Axes: H W pixels.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.data.hf_files import checked_place
from clipdepth_plugin.errors import DataError, quoted
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.paths import is_folder

INFO_FILE = "meta/info.json"
INFO_BYTES = 64 * MIB
_T = TypeVar("_T")
_VERSION = re.compile(r"v3\.\d+")


def lerobot_module(name: str, spec: str) -> Any:
    """A module of the package; ``spec`` is what it is needed for.

    Raises:
        DataError: It is not installed, or can't be imported.
    """
    try:
        return importlib.import_module(f"lerobot.{name}")
    except Exception as error:  # also where its own packages do not fit
        raise DataError(
            f'{spec}: needs pip install "lerobot[dataset]", with Python 3.12 or later ({error})'
        ) from error


def read_info(folder: Path) -> dict[str, Any]:
    """The ``meta/info.json`` of a data set in a folder.

    Raises:
        DataError: The folder holds no data set of version 3.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise DataError(f"{folder}: no LeRobot data set: it has no {INFO_FILE}")
    info = read_json(path, DataError, limit=INFO_BYTES)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise DataError(
            f"{path}: codebase_version is {quoted(version)}, expected v3.0; LeRobot converts older "
            "data sets: python -m lerobot.scripts.convert_dataset_v21_to_v30 --help"
        )
    return dict(info)


class LeRobotFrames:
    """An opened data set.

    Attributes:
        name: Its hub id, or the name of its folder.
        place: The hub id or the folder.
        meta: LeRobot's ``LeRobotDatasetMetadata``.
        cameras: Keys of its cameras; those of depth are none.
        episodes: (first row, row behind the last) of each.
    """

    def __init__(self, spec: str) -> None:
        """Opens ``ORG/NAME`` or a folder; a folder is not looked for elsewhere.

        Raises:
            DataError: LeRobot is missing, or the data set can't be opened.
        """
        self.place = checked_place(spec)
        folder = Path(self.place) if is_folder(Path(self.place)) else None
        self.name = self.place if folder is None else folder.name
        reader = lerobot_module("datasets.lerobot_dataset", spec)
        if folder is not None:
            read_info(folder)
        self._rows = _opened(spec, lambda: reader.LeRobotDataset(self.name, root=folder))
        self.meta = self._rows.meta
        self.cameras, self.episodes = _opened(spec, self._listed)
        if not self.cameras:
            raise DataError(f"{spec}: has no camera")
        self._row: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()  # its video decoders are not made for several threads

    def _listed(self) -> tuple[list[str], list[tuple[int, int]]]:
        depth = set(getattr(self.meta, "depth_keys", ()))
        cameras = [one for one in self.meta.camera_keys if one not in depth]
        return cameras, [
            (int(one["dataset_from_index"]), int(one["dataset_to_index"]))
            for one in self.meta.episodes or ()
        ]

    def read(self, index: int, camera: str) -> NDArray[np.uint8]:
        """The picture (H, W, 3) of a camera in a row.

        Raises:
            DataError: It can't be read.
        """
        try:
            with self._lock:
                if self._row[0] != index:  # it holds the pictures of all cameras
                    self._row = (index, self._rows[index])
                image_3HW = self._row[1][camera]
        except Exception as error:  # of the library's video decoders
            raise DataError(
                f"row {index}, {camera}: can't be read ({type(error).__name__}: {error})"
            ) from error
        pixels_HW3 = np.rint(image_3HW.permute(1, 2, 0).numpy() * 255.0)
        return np.ascontiguousarray(pixels_HW3.clip(0, 255).astype(np.uint8))


def short_name(camera: str) -> str:
    """The name of a camera without what all of them begin with."""
    return camera.removeprefix("observation.").removeprefix("images.")


def _opened(spec: str, opened: Callable[[], _T]) -> _T:
    try:
        return opened()
    except Exception as error:  # the library and its hub client raise almost anything
        raise DataError(
            f"{spec}: the data set can't be opened ({type(error).__name__}: {error}); check "
            "the name, the network, and that it is of version 3"
        ) from error

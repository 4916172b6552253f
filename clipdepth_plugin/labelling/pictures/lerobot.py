"""LeRobot data sets (v3), through the package's own reader: a sequence for each episode and camera.

``lerobot:ORG/NAME``, or ``lerobot:FOLDER``. The package needs Python 3.12.

Axes: H W pixels.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipdepth_plugin.data.hf_files import checked_place
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.paths import is_folder
from clipdepth_plugin.labelling.names import sequence_name
from clipdepth_plugin.labelling.pictures.kinds import (
    JPEG,
    Content,
    Options,
    Pictures,
    PictureSpec,
    Unread,
    register_pictures,
)

_SCHEME = "lerobot:"


def _is_lerobot(spec: PictureSpec) -> bool:
    return isinstance(spec, str) and spec.startswith(_SCHEME)


@register_pictures("lerobot", recognises=_is_lerobot)
class LeRobotPictures(Pictures):
    """The camera frames of a data set; each episode is a part."""

    reads_to_skip = False  # rows are read by number

    def __init__(self, spec: str, options: Options) -> None:
        """Opens the data set; a local one is not looked for elsewhere."""
        place = checked_place(spec.removeprefix(_SCHEME))
        folder = Path(place) if is_folder(Path(place)) else None
        name = place if folder is None else folder.name
        try:
            reader = importlib.import_module("lerobot.datasets.lerobot_dataset")
        except Exception as error:  # also where its own packages do not fit
            raise DataError(
                f'{spec}: needs pip install "lerobot[dataset]", with Python 3.12 or later ({error})'
            ) from error
        try:
            self._rows = reader.LeRobotDataset(name, root=folder)
            meta = self._rows.meta
            depth = set(getattr(meta, "depth_keys", ()))
            self._cameras = [one for one in meta.camera_keys if one not in depth]
            self._episodes = [
                (int(one["dataset_from_index"]), int(one["dataset_to_index"]))
                for one in meta.episodes
            ]
        except Exception as error:  # the library and its hub client raise almost anything
            raise DataError(
                f"{spec}: the data set can't be opened ({type(error).__name__}: {error}); check "
                "the name, the network, and that it is of version 3"
            ) from error
        if not self._cameras:
            raise DataError(f"{spec}: has no camera")
        self._every = options.every
        self._row: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()  # its video decoders are not made for several threads
        self._parts = name.split("/")
        self.titles = {sequence_name(*self._parts): place}

    @property
    def parts(self) -> int:
        """See ``Pictures``."""
        return len(self._episodes)

    def part(self, number: int) -> Iterator[Unread]:
        """See ``Pictures``."""
        first, end = self._episodes[number]
        sequences = {
            camera: sequence_name(
                *self._parts,
                f"{number:06d}",
                camera.removeprefix("observation.").removeprefix("images."),
            )
            for camera in self._cameras
        }
        for index in range(first, end, self._every):
            for camera, sequence in sequences.items():
                name, place = f"{sequence}/{index - first:06d}", f"row {index}, {camera}"
                yield Unread(name, place, functools.partial(self._read, index, camera))

    def length(self, number: int) -> int:
        """See ``Pictures``."""
        first, end = self._episodes[number]
        return len(self._cameras) * len(range(first, end, self._every))

    def _read(self, index: int, camera: str) -> Content:
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
        return Content(np.ascontiguousarray(pixels_HW3.clip(0, 255).astype(np.uint8)), None, JPEG)

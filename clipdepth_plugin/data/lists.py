"""NYU and KITTI by BTS-style lists: "rgb depth focal" a line, over the sync or raw folders.

A line's depth may be None (KITTI's Eigen list has 45 of 697): the line is left out. Leading slashes
are dropped. A .png that is not there is looked for as .jpg and the other way round, since KITTI is
passed around as both.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.data.camera import NYU_CAMERA, NYU_SIZE, cropped, rescaled
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import SampleDataset, checked
from clipdepth_plugin.data.files import DepthUnit, check_sizes, read_depth, read_image
from clipdepth_plugin.data.kitti import KittiCameras
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import DataError

logger = logging.getLogger(__name__)

_DEFAULTS = {"nyu": (1000.0, 10.0), "kitti": (256.0, 80.0)}  # depth scale, farthest depth
_OTHER_SUFFIX = {".png": ".jpg", ".jpg": ".png"}
# KITTI's depth archive unpacks into these two; lists name what is inside.
_KITTI_PARTS = ("", "train", "val")


class _Line(NamedTuple):
    image: str
    depth: str
    focal: float | None


class ListedSet(SampleDataset):
    """The samples that a list names, in its order."""

    def __init__(self, config: DataConfig) -> None:
        """Reads the list; no picture is read.

        Raises:
            DataError: The list or a folder is missing, or a line can't be understood.
        """
        assert config.files is not None
        self._config = config
        self._images = config.path(config.image_root)
        self._depths = config.path(config.depth_root)
        for folder in (self._images, self._depths):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; check root, image_root and depth_root")
        path = config.path(config.files)
        self._lines = _read_list(path)
        if not self._lines:
            raise DataError(f"{path}: names no picture that has depth")
        scale, farthest = _DEFAULTS[config.format]
        self._unit = DepthUnit(
            config.depth_scale or scale, config.min_depth, config.max_depth or farthest
        )

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        """``<set>/<split>/<picture's path in the list, without suffix>``."""
        image = self._lines[checked(index, len(self))].image
        return f"{self._config.title}/{self._config.split}/{image.rpartition('.')[0] or image}"

    def read_with(self, index: int) -> object:
        """See ``SampleDataset``."""
        line = self._lines[checked(index, len(self))]
        calibrated = self._config.format == "kitti" and not self._config.intrinsics
        return line, self._kitti.calibration(line.image) if calibrated else None

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        line = self._lines[checked(index, len(self))]
        depth_path = _find(self._depths, line.depth, self._parts)
        depth_1HW = read_depth(depth_path, self._unit)
        image_3HW = read_image(_find(self._images, line.image), "")
        check_sizes(image_3HW, depth_1HW, str(depth_path))
        height, width = depth_1HW.shape[1:]
        camera = self._config.intrinsics or self._camera(line, (height, width))
        sample = Sample(image_3HW, depth_1HW, camera, self.name(index))
        return cropped(sample, self._config.crop) if self._config.crop else sample

    @property
    def _parts(self) -> tuple[str, ...]:
        return _KITTI_PARTS if self._config.format == "kitti" else ("",)

    @cached_property
    def _kitti(self) -> KittiCameras:
        return KittiCameras(self._images)

    def _camera(self, line: _Line, size: tuple[int, int]) -> Intrinsics | None:
        if self._config.format == "kitti":
            return self._kitti.camera(line.image, line.focal, size)
        return nyu_camera(line.focal, size)


def nyu_camera(focal: float | None, size: tuple[int, int]) -> Intrinsics | None:
    """The camera of an NYU picture, stored at ``size``.

    A list's focal length is in pixels of the full 640 x 480 picture. 518.86 stands for the data
    set's own camera, whose centre is known too; another one is taken with the picture's middle.
    """
    if focal is None:
        return None
    own = abs(focal - NYU_CAMERA[0]) < 0.5
    height, width = NYU_SIZE
    full = NYU_CAMERA if own else (focal, focal, (width - 1) / 2, (height - 1) / 2)
    return rescaled(full, NYU_SIZE, size)


def _read_list(path: Path) -> list[_Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list; check files") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list can't be read ({error})") from error
    lines, without = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (2, 3):
            raise DataError(f'{path}:{number}: expected "rgb depth focal", got {line!r}')
        try:
            focal = float(words[2]) if len(words) == 3 else None
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: the focal length {words[2]!r} is no number"
            ) from error
        if words[1] == "None":
            without += 1
            continue
        lines.append(_Line(words[0].lstrip("/"), words[1].lstrip("/"), focal))
    if without:
        logger.info("%s: %d of %d lines have no depth", path, without, without + len(lines))
    return lines


def _find(root: Path, relative: str, parts: tuple[str, ...] = ("",)) -> Path:
    """The file that is there; the path as listed where none is, so that reading it says so."""
    listed = root / relative
    swapped = listed.with_suffix(_OTHER_SUFFIX.get(listed.suffix, listed.suffix)).name
    for part in parts:
        path = root / part / relative
        for candidate in (path, path.with_name(swapped)):
            if candidate.exists():
                return candidate
    return listed

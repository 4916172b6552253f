"""ListedSet: BTS-style lists, "rgb depth focal" a line, over folders of pictures.

A line whose depth is None (45 of 697 in KITTI's Eigen list) is left out. Leading slashes are
dropped. A .png that does not exist is looked for as .jpg and the other way round, since KITTI is
distributed as both.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from clipdepth_plugin.arguments import Intrinsics, parse_focal_length
from clipdepth_plugin.data.addresses import check_inside
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.files import DepthUnit, SampleMaker, read_image, stored_depth
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import DataError, HostError

logger = logging.getLogger(__name__)

FIELDS = ("image_root", "depth_root", "crop")
"""The fields of ``DataConfig`` that list formats read beside ``files``."""

_OTHER_SUFFIX = {".png": ".jpg", ".jpg": ".png"}


class Line(NamedTuple):
    """A line of the list; paths are relative to ``image_root`` and ``depth_root``."""

    image: str
    depth: str
    focal: float | None
    number: int


class ListedSet(SampleDataset):
    """The samples that a list names, in its order.

    Attributes:
        images: Folder of the pictures.
        depth_scale: Stored value of one metre, where the config does not say.
        max_depth: Farthest valid depth in metres, where the config does not say.
        depth_folders: Where below ``depth_root`` a depth map may be.
    """

    depth_scale: ClassVar[float]
    max_depth: ClassVar[float]
    depth_folders: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, config: DataConfig) -> None:
        """Reads the list; no picture is read."""
        assert config.files is not None
        self._config = config
        self.images = config.path(config.image_root)
        self._depths = config.path(config.depth_root)
        for folder in (self.images, self._depths):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; check root, image_root and depth_root")
        self._list = config.path(config.files)
        self._lines = _read_list(self._list)
        if not self._lines:
            raise DataError(f"{self._list}: names no picture that has depth")
        self._unit = DepthUnit.of(config, self.depth_scale, self.max_depth)
        self._make = SampleMaker(config)

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        """``<set>/<split>/<picture's path in the list, without suffix>``."""
        image = self._lines[index].image
        return f"{self._config.title}/{self._config.split}/{image.rpartition('.')[0] or image}"

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        line = self._lines[index]
        depth_path = _find(self._depths, line.depth, self.depth_folders)
        depth_1HW = self._unit.metres(stored_depth(depth_path, str(depth_path)))
        image_3HW = read_image(_find(self.images, line.image), "")
        height, width = depth_1HW.shape[1:]
        return self._make(
            image_3HW,
            depth_1HW,
            self.camera(line, (height, width)),
            self.name(index),
            what=str(depth_path),
            camera_from=f"{self._list}:{line.number}",
        )

    @abstractmethod
    def camera(self, line: Line, size: tuple[int, int]) -> Intrinsics | None:
        """The camera of a line's picture, stored at ``size`` (H, W); None where not known."""


def _read_list(path: Path) -> list[Line]:
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
        focal = _focal(words[2], f"{path}:{number}: the focal length") if words[2:] else None
        if words[1] == "None":
            without += 1
            continue
        image, depth = (check_inside(word.lstrip("/"), f"{path}:{number}") for word in words[:2])
        lines.append(Line(image, depth, focal, number))
    if without:
        logger.info("%s: %d of %d lines have no depth", path, without, without + len(lines))
    return lines


def _focal(word: str, where: str) -> float:
    try:
        return parse_focal_length(float(word), where)
    except HostError as error:
        raise DataError(str(error)) from error
    except ValueError as error:
        raise DataError(f"{where} {word!r} is no number") from error


def _find(root: Path, relative: str, folders: tuple[str, ...] = ("",)) -> Path:
    """The file that exists; the path as listed where none does, so that reading it says so."""
    listed = root / relative
    swapped = listed.with_suffix(_OTHER_SUFFIX.get(listed.suffix, listed.suffix)).name
    for folder in folders:
        path = root / folder / relative
        for candidate in (path, path.with_name(swapped)):
            if candidate.exists():
                return candidate
    return listed

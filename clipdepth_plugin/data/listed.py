"""ListedSet: BTS-style lists, "rgb depth focal" a line, over folders of pictures.

A line whose depth is None (45 of 697 in KITTI's Eigen list) is left out. Leading slashes are
dropped. A .png that does not exist is looked for as .jpg and the other way round, since KITTI is
distributed as both; upper and lower case don't matter where only one file's name differs in them.
The fields of a line stand between blanks, tabs or commas; names with blanks in them in quotes.
"""

from __future__ import annotations

import csv
import logging
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

from clipdepth_plugin.arguments import Intrinsics, parse_focal_length
from clipdepth_plugin.data.addresses import check_inside
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.files import DepthUnit, SampleMaker, read_image, stored_depth
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import DataError, HostError, quoted
from clipdepth_plugin.files.paths import FolderNames, is_folder, read_text

logger = logging.getLogger(__name__)

FIELDS = ("image_root", "depth_root", "crop")
"""The fields of ``DataConfig`` that list formats read beside ``files``."""

_NO_LIST = "no such list; check files"
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
            if not is_folder(folder):
                raise DataError(f"{folder}: no such folder; check root, image_root and depth_root")
        self._list = config.path(config.files)
        self._lines = _read_list(self._list)
        if not self._lines:
            raise DataError(f"{self._list}: names no picture that has depth")
        self._unit = DepthUnit.of(config, self.depth_scale, self.max_depth)
        self._make = SampleMaker(config)
        self._paths, self.missing = self._found(self._list)

    def _found(self, path: Path) -> tuple[list[tuple[Path, Path]], dict[int, str]]:
        """Picture and depth of each line; line -> what is missing, with the path as listed."""
        names = FolderNames(DataError)
        missing: dict[int, str] = {}
        found = []
        for index, line in enumerate(self._lines):
            pair = []
            for root, relative, folders in (
                (self.images, line.image, ("",)),
                (self._depths, line.depth, self.depth_folders),
            ):
                there = _find(names, root, relative, folders)
                if there is None:
                    missing[index] = (
                        f"{root / relative}: no such file (line {line.number} of {path})"
                    )
                pair.append(there or root / relative)
            found.append((pair[0], pair[1]))
        return found, missing

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        """``<set>/<split>/<picture's path in the list, without suffix>``."""
        image = self._lines[index].image
        return f"{self._config.title}/{self._config.split}/{image.rpartition('.')[0] or image}"

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        line, (image_path, depth_path) = self._lines[index], self._paths[index]
        depth_1HW = self._unit.metres(stored_depth(depth_path, str(depth_path)))
        image_3HW = read_image(image_path)
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
    lines, without = [], 0
    for number, text in enumerate(read_text(path, DataError, _NO_LIST).splitlines(), 1):
        if not text.strip():
            continue
        line = _parsed(text, number, f"{path}:{number}")
        if line.depth == "None":
            without += 1
        else:
            lines.append(line)
    if without:
        logger.info("%s: %d of %d lines have no depth", path, without, without + len(lines))
    return lines


def _parsed(text: str, number: int, where: str) -> Line:
    """A line as the first separator has it under which it is "rgb depth [focal]"."""
    third = None
    for separator in (" ", "\t", ","):
        words = _words(text.replace("\t", " ") if separator == " " else text, separator)
        if len(words) not in (2, 3) or not all(words) or any(word.endswith(",") for word in words):
            continue
        image, depth, *rest = words
        try:
            focal = float(rest[0]) if rest else None
        except ValueError:
            third = third or rest[0]
            continue
        if focal is not None and depth != "None":
            focal = _focal(focal, f"{where}: the focal length")
        image, depth = (check_inside(word.lstrip("/"), where) for word in (image, depth))
        return Line(image, depth, focal, number)
    if third is not None:
        raise DataError(
            f"{where}: the focal length {quoted(third)} is no number; the third column is the "
            "focal length in pixels, and may be left out. Leave out a header line, too"
        )
    raise DataError(
        f'{where}: expected "rgb depth focal" or "rgb depth", got {quoted(text, 200)}; put names '
        "with blanks in quotes"
    )


def _focal(value: float, where: str) -> float:
    try:
        return parse_focal_length(value, where)
    except HostError as error:
        raise DataError(str(error)) from error


def _words(text: str, separator: str) -> list[str]:
    try:
        rows = list(csv.reader([text.strip()], delimiter=separator, skipinitialspace=True))
    except csv.Error:
        return []
    words = [word.strip() for word in rows[0]] if rows else []
    return [word for word in words if word] if separator == " " else words


def _find(names: FolderNames, root: Path, relative: str, folders: Iterable[str]) -> Path | None:
    listed = Path(relative)
    other = _OTHER_SUFFIX.get(listed.suffix.lower())
    for folder in folders:
        for candidate in (listed, listed.with_suffix(other)) if other else (listed,):
            found = names.find(root / folder / candidate)
            if found is not None:
                return found
    return None

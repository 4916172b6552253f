"""Measured points of pictures: a CSV file as a set of samples with sparse depth.

    picture,x,y,metres[,focal_px]

Pictures are relative to the file's folder, and upright, as ``files.pictures.load_image`` gives
them. Integer x and y are pixel centres; a point counts for the pixel that it lies in.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags

from clipdepth_plugin.arguments import Size, parse_focal_length, parse_metres
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.errors import ClipDepthError, DataError, quoted, shortened
from clipdepth_plugin.files.paths import read_text
from clipdepth_plugin.files.pictures import load_image, opened_image
from clipdepth_plugin.lenses import LensCheck, centred

COLUMNS = ("picture", "x", "y", "metres")
OPTIONAL = ("focal_px",)
NEAREST = 1e-3
"""Metres; nothing nearer is measured."""

_NAMED = 10
_TURNED = (5, 6, 7, 8)  # EXIF orientations whose sides change places
_HEADER = f"a header {','.join(COLUMNS)}, and {','.join(OPTIONAL)} where the lens is known"


@dataclass
class _Picture:
    """A picture's points: pixel (row, column) -> (line, metres)."""

    path: Path
    name: str
    size: Size
    line: int
    focal_px: float | None
    points: dict[Size, tuple[int, float]] = field(default_factory=dict)


class PointsFile(SampleDataset):
    """The pictures that a file of points names, in the order of their first points."""

    def __init__(self, path: Path) -> None:
        """Reads and checks all points; of the pictures only the sizes.

        Raises:
            DataError: The file or a picture can't be read, the header is another, or rows are
                wrong: they are named by line.
        """
        self.path = path
        self._pictures: dict[Path, _Picture] = {}
        wrong: list[str] = []
        check = LensCheck()
        for line, row in self._rows():
            try:
                self._add(line, row, check)
            except ClipDepthError as error:
                wrong.append(f"line {line}: {error}")
        if wrong:
            more = [f"and {len(wrong) - _NAMED} more"] if wrong[_NAMED:] else []
            lines = "".join(f"\n  {one}" for one in [*wrong[:_NAMED], *more])
            raise DataError(f"{path}: {len(wrong)} rows are wrong; mend or remove them:{lines}")
        if not self._pictures:
            raise DataError(f"{path}: holds no point; expected a row for each below {_HEADER}")
        self._listed = list(self._pictures.values())

    def __len__(self) -> int:
        return len(self._listed)

    def name(self, index: int) -> str:
        """The picture, as the file names it."""
        return self._listed[index].name

    def __getitem__(self, index: int) -> Sample:
        """See ``SampleDataset``."""
        one = self._listed[index]
        rgb_HW3 = np.array(load_image(one.path))
        image_3HW = torch.from_numpy(rgb_HW3).permute(2, 0, 1)
        if rgb_HW3.shape[:2] != one.size:
            raise DataError(f"{one.path}: its size changed since {self.path} was read")
        depth_1HW = torch.zeros(1, *one.size)
        for (row, column), (_, metres) in one.points.items():
            depth_1HW[0, row, column] = metres
        camera = None if one.focal_px is None else centred(one.focal_px, one.size)
        return Sample(image_3HW, depth_1HW, camera, one.name)

    def line(self, index: int, row: int, column: int) -> int:
        """The line of a sample's point."""
        return self._listed[index].points[row, column][0]

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        text = read_text(self.path, DataError)
        reader = csv.reader(text.splitlines(), skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        unknown = [name for name in header if name not in (*COLUMNS, *OPTIONAL)]
        if missing or unknown or len({*header}) < len(header):
            raise DataError(f"{self.path}:1: expected {_HEADER}; got {quoted(','.join(header))}")
        try:
            for values in reader:
                if any(value.strip() for value in values):
                    yield reader.line_num, self._row(header, values)
        except csv.Error as error:
            raise DataError(f"{self.path}:{reader.line_num}: is no CSV ({error})") from error

    @staticmethod
    def _row(header: list[str], values: list[str]) -> dict[str, str]:
        if len(values) != len(header):  # told as a row that lacks all
            return {"": ",".join(values)}
        return {name: value.strip() for name, value in zip(header, values, strict=True)}

    def _add(self, line: int, row: dict[str, str], check: LensCheck) -> None:
        if "" in row:
            raise DataError(f"has another number of columns than the header: {quoted(row[''])}")
        name, focal = row["picture"], row.get("focal_px")
        focal_px = parse_focal_length(_number(focal, "focal_px"), "focal_px") if focal else None
        if not name:
            raise DataError("picture: is empty")
        path = Path(os.path.normpath(self.path.parent / name))  # one picture, however it is spelt
        one = self._pictures.get(path) or _Picture(path, name, (0, 0), line, focal_px)
        if one.size == (0, 0):
            one.size = _upright_size(one.path)
        height, width = one.size
        pixel = math.floor(_number(row["y"], "y") + 0.5), math.floor(_number(row["x"], "x") + 0.5)
        metres = parse_metres(_number(row["metres"], "metres"), "metres")
        if metres < NEAREST:
            raise DataError(f"metres: {shortened(row['metres'])} is less than {NEAREST:g}")
        if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise DataError(
                f"x, y: {shortened(row['x'])}, {shortened(row['y'])} is outside of the picture, "
                f"{width} wide and {height} high"
            )
        if focal_px != one.focal_px:
            raise DataError(
                f"focal_px: {shortened(focal or 'empty')}, but {one.focal_px or 'empty'} on line "
                f"{one.line} of the same picture"
            )
        if pixel in one.points:
            raise DataError(f"the same pixel of {quoted(name)} as on line {one.points[pixel][0]}")
        if focal_px is not None:
            check(centred(focal_px, one.size), one.size, "focal_px")
        self._pictures[path] = one
        one.points[pixel] = line, metres


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{name}: got {quoted(text)}, expected a finite number")
    return value


def _upright_size(path: Path) -> Size:
    with opened_image(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)

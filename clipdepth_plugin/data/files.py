"""Pictures and depth maps from files and bytes, as the tensors of a Sample.

Axes: H W pixels, C colours.
"""

from __future__ import annotations

import importlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from clipdepth_plugin.arguments import Intrinsics, Units
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.sample import Sample, cropped
from clipdepth_plugin.errors import DataError, HostError
from clipdepth_plugin.files.opening import (
    MAX_PIXELS,
    Source,
    head_of,
    opened,
    stored_as,
    too_large,
)
from clipdepth_plugin.files.paths import check_file
from clipdepth_plugin.files.pictures import opened_image, upright_rgb
from clipdepth_plugin.lenses import LensCheck

WHITE_16 = 65535
"""The largest of 16 bits; its scale says nothing where depth is relative."""

_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_NPY = b"\x93NUMPY"
_ABSENT = "no such file; check the set, or download it again"
_WANTED = "depth is a grey PNG or TIFF of 16 bits, a TIFF of floats, or a NumPy array (.npy)"


@dataclass(frozen=True)
class DepthUnit:
    """The stored value of one metre, and the nearest and farthest valid depth in metres."""

    scale: float
    low: float
    high: float

    @classmethod
    def of(cls, config: DataConfig, scale: float, farthest: float | None = None) -> Self:
        """What a config says; ``scale`` and ``farthest`` where it does not."""
        low, high = config.min_depth, config.max_depth or farthest or math.inf
        if not low < high:
            raise DataError(
                f"{config.root}: the nearest depth, {low} m, is not below the farthest, {high} m; "
                "check min_depth and max_depth (meta.json: max_depth_m)"
            )
        return cls(config.depth_scale or scale, low, high)

    def metres(self, stored_HW: NDArray[Any]) -> Tensor:
        """(1, H, W) float32 metres; 0 where the stored value is not a depth within the range."""
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, no depth
            depth_HW = stored_HW.astype(np.float32)
        if self.scale != 1.0:
            depth_HW /= self.scale
        valid_HW = (depth_HW >= self.low) & (depth_HW <= self.high) & (depth_HW > 0)
        valid_HW &= np.isfinite(depth_HW)
        depth_HW[~valid_HW] = 0.0  # NaN, too
        return torch.from_numpy(depth_HW)[None]


def read_image(source: Source, what: str | None = None) -> Tensor:
    """A picture that has depth beside it, as (3, H, W) uint8 RGB; ``what`` names bytes in errors.

    Raises:
        ImageError: It can't be read.
        DataError: It is to be rotated.
    """
    what = str(source) if isinstance(source, Path) else what or "picture"
    with opened_image(source, what) as opened:
        return pixels_of(opened, what)


def pixels_of(image: Image.Image, what: str) -> Tensor:
    """(3, H, W) uint8 RGB of an opened picture that has depth beside it."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        raise DataError(
            f"{what}: has EXIF orientation {orientation}, and it is not known whether its depth is "
            "rotated too: store both upright, without that tag"
        )
    return torch.from_numpy(np.array(upright_rgb(image, what))).permute(2, 0, 1)


def stored_depth(source: Any, what: str) -> NDArray[Any]:
    """The stored values (H, W) of a depth map: a file, its content, a picture or an array.

    A file is a grey PNG, TIFF or PGM of 16 bits, a TIFF or PFM of floats or 32 bits, or a NumPy
    array (.npy), whatever its suffix.

    Raises:
        DataError: It can't be read, is no depth, or is not one map of numbers.
    """
    if isinstance(source, Path):
        check_file(source, DataError, _ABSENT)
    if isinstance(source, Path | bytes):
        read = _npy if head_of(source).startswith(_NPY) else _depth_picture
        source = read(source, what)
    stored: NDArray[Any] = np.asarray(source)
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored.squeeze(0 if stored.shape[0] == 1 else 2)
    if stored.ndim != 2 or stored.dtype.kind not in "uif" or not stored.size:
        raise DataError(
            f"{what}: depth has shape {stored.shape} of {stored.dtype}, expected one map (H, W) of "
            "numbers"
        )
    return stored


def relative_depth(stored_HW: NDArray[Any], what: str) -> Tensor:
    """(1, H, W) float32 inverse depth in 0..1 of 16-bit values; 0 = invalid. ``what``: the file.

    Raises:
        DataError: They are no whole numbers of 16 bits.
    """
    if stored_HW.dtype.kind == "f" or stored_HW.min() < 0 or stored_HW.max() > WHITE_16:
        raise DataError(f"{what}: inverse depth is 16-bit grey, 1 to {WHITE_16}, 0 = not known")
    return torch.from_numpy(stored_HW.astype(np.float32) / WHITE_16)[None]


def stored_weight(path: Path, size: tuple[int, int]) -> Tensor:
    """(1, H, W) uint8 weights of the pixels of a depth map of ``size``.

    Raises:
        DataError: It can't be read, is no grey picture of 8 bits, or is of another size.
    """
    check_file(path, DataError, _ABSENT)
    with opened(path, str(path), DataError, wanted="weights are a grey PNG of 8 bits") as image:
        if image.mode != "L" or (image.height, image.width) != size:
            raise DataError(
                f"{path}: is {stored_as(image)} of {image.height} x {image.width} (mode "
                f"{image.mode}), expected 8-bit grey of its depth's {size[0]} x {size[1]} (height, "
                "width)"
            )
        return torch.from_numpy(np.array(image))[None]


def _depth_picture(source: Source, what: str) -> NDArray[Any]:
    with opened(source, what, DataError, wanted=_WANTED) as image:
        if image.mode not in _DEPTH_MODES:
            raise DataError(
                f"{what}: is {stored_as(image)} (mode {image.mode}), expected 16-bit grey or "
                f"floats: 8 bits or colours are not metric depth; {_WANTED}"
            )
        return np.asarray(image)


def _npy(source: Source, what: str) -> NDArray[Any]:
    """An array; of a file only the header is read at first, so that its size is known."""
    try:
        if isinstance(source, bytes):
            return cast("NDArray[Any]", np.load(io.BytesIO(source), allow_pickle=False))
        mapped = np.load(source, mmap_mode="r", allow_pickle=False)
        if mapped.size > MAX_PIXELS:
            raise too_large(what, mapped.shape, MAX_PIXELS, DataError)
        return np.array(mapped)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{what}: the depth map is damaged, or no array of numbers ({error}); write it again "
            "with numpy.save"
        ) from error


class SampleMaker:
    """Makes the samples of a set from their parts."""

    def __init__(self, config: DataConfig) -> None:
        """For the set of ``config``, whose camera and crop it takes."""
        self._config = config
        self._check_lens = LensCheck()

    def __call__(
        self,
        image_3HW: Tensor,
        depth_1HW: Tensor,
        camera: Intrinsics | None,
        name: str,
        *,
        what: str,
        camera_from: str,
        weight_1HW: Tensor | None = None,
        units: Units = "metres",
    ) -> Sample:
        """A sample, cropped as the config says; what has no weight has no depth.

        ``camera`` is the set's own; in errors ``what`` and ``camera_from`` name the files.
        """
        size = (depth_1HW.shape[1], depth_1HW.shape[2])
        if image_3HW.shape[1:] != depth_1HW.shape[1:]:
            raise DataError(
                f"{what}: the picture is {tuple(image_3HW.shape[1:])}, its depth {size} (height, "
                "width); they must lie pixel on pixel"
            )
        config = self._config
        if weight_1HW is not None:
            depth_1HW = depth_1HW.where(weight_1HW > 0, 0.0)
        if config.intrinsics is not None:
            camera, camera_from = config.intrinsics, f"{name}: intrinsics of its data set"
        if camera is not None:
            try:
                self._check_lens(camera, size, camera_from)
            except HostError as error:
                raise DataError(str(error)) from error
        sample = Sample(image_3HW, depth_1HW, camera, name, weight_1HW, units)
        return cropped(sample, config.crop) if config.crop else sample


def require(module: str, extra: str, why: str) -> Any:
    """Imports an optional package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{why} needs the package {module.partition('.')[0]}: "
            f'pip install "clipdepth-plugin[{extra}]"'
        ) from error

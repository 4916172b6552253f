"""Sample: one picture with its depth and camera, the same from every format.

Cameras are carried through crops and resizes. Integer coordinates are pixel centres; a size is
(H, W).

Axes: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image
from torch import Tensor

from clipdepth_plugin.arguments import Intrinsics, Units
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.maps.geometry import ViewGeometry

Crop = Literal["kb", "nyu"]
NYU_SIZE = (480, 640)
NYU_CAMERA: Intrinsics = (518.85790, 519.46961, 325.58245, 253.73617)
"""Colour camera of NYU Depth V2, from the data set's toolbox (camera_params.m)."""

KB_SIZE = (352, 1216)
_NYU_BOX = (45, 43, 472, 608)  # top, left, bottom, right; without the white frame, as BTS crops


@dataclass(frozen=True)
class Sample:
    """A picture and what is known of its depth.

    Attributes:
        image_3HW: uint8 RGB.
        depth_1HW: float32 in ``units``; 0 = invalid. Sparse truth is just many zeros.
        intrinsics: (fx, fy, cx, cy) in pixels of this picture, integer coordinates being pixel
            centres; None where not known.
        name: For messages and tables, unique in its set: ``libero/train/<sequence>/<frame>``.
        weight_1HW: uint8, how much each pixel counts in training, 255 being all of it; None: all
            count the same.
        units: Of ``depth_1HW``.
    """

    image_3HW: Tensor
    depth_1HW: Tensor
    intrinsics: Intrinsics | None
    name: str
    weight_1HW: Tensor | None = None
    units: Units = "metres"

    @property
    def picture(self) -> Image.Image:
        """The picture as Pillow has it."""
        return Image.fromarray(self.image_3HW.permute(1, 2, 0).contiguous().numpy())


def check_metres(sample: Sample) -> None:
    """Refuses a sample of relative depth where metres are measured against or fitted to."""
    if sample.units != "metres":
        raise DataError(
            f"{sample.name}: its depth is {sample.units}, relative, and metres are needed here"
        )


def rescaled(intrinsics: Intrinsics, size: tuple[int, int], to: tuple[int, int]) -> Intrinsics:
    """Intrinsics of a picture of ``size``, for the same picture resized to ``to``."""
    if size == to:
        return intrinsics
    return ViewGeometry(size, to, (to[0] / size[0], to[1] / size[1]), (0, 0)).intrinsics(intrinsics)


def cropped(sample: Sample, crop: Crop) -> Sample:
    """A part of a sample, intrinsics moved along; see ``DataConfig.crop``."""
    height, width = sample.image_3HW.shape[1:]
    if crop == "kb":
        top, left = height - KB_SIZE[0], (width - KB_SIZE[1]) // 2
        bottom, right = height, left + KB_SIZE[1]
    else:
        top, left, bottom, right = _NYU_BOX
    if top < 0 or left < 0 or bottom > height or right > width:
        raise DataError(
            f"{sample.name}: crop {crop!r} needs a picture of at least "
            f"{KB_SIZE if crop == 'kb' else NYU_SIZE} (height, width), this is {(height, width)}"
        )
    camera, weight_1HW = sample.intrinsics, sample.weight_1HW
    if camera is not None:
        camera = (camera[0], camera[1], camera[2] - left, camera[3] - top)
    return replace(
        sample,
        image_3HW=sample.image_3HW[:, top:bottom, left:right],
        depth_1HW=sample.depth_1HW[:, top:bottom, left:right],
        intrinsics=camera,
        weight_1HW=None if weight_1HW is None else weight_1HW[:, top:bottom, left:right],
    )

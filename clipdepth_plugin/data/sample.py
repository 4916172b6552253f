"""Sample: one picture with its depth and camera, the same from every format.

Axes: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from PIL import Image
from pydantic import AfterValidator
from torch import Tensor

from clipdepth_plugin.arguments import Intrinsics, parse_camera

__all__ = ["GivenCamera", "Intrinsics", "Sample"]

GivenCamera = Annotated[Intrinsics, AfterValidator(lambda x: parse_camera(x, "intrinsics"))]
"""(fx, fy, cx, cy) as a config or a set's file gives it: finite, focal lengths above 0."""


@dataclass(frozen=True)
class Sample:
    """A picture and what is known of its depth.

    Attributes:
        image_3HW: uint8 RGB.
        depth_1HW: float32 metres, planar z; 0 = invalid. Sparse truth is just many zeros.
        intrinsics: (fx, fy, cx, cy) in pixels of this picture, integer coordinates being pixel
            centres; None where not known.
        name: For messages and tables, unique in its set: ``libero/train/<sequence>/<frame>``.
    """

    image_3HW: Tensor
    depth_1HW: Tensor
    intrinsics: Intrinsics | None
    name: str

    @property
    def picture(self) -> Image.Image:
        """The picture as Pillow has it."""
        return Image.fromarray(self.image_3HW.permute(1, 2, 0).contiguous().numpy())

"""Where a tower's view lies in the user's image, and what that does to maps and intrinsics.

Coordinates: integer coordinates are pixel centres; a size is (H, W).

Axes: C channels, H W a map's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.blocks import resize
from clipdepth_plugin.errors import HostError

Intrinsics = tuple[float, float, float, float]


@dataclass(frozen=True)
class ViewGeometry:
    """How one image became one view: view = image * scale + offset, in pixel edges.

    Attributes:
        image_size: (H, W) of the user's image.
        view_size: (H, W) of the tower's input.
        scale: (vertical, horizontal) factor of the resize.
        offset: (vertical, horizontal) shift by the crop (negative) or the padding (positive).
    """

    image_size: tuple[int, int]
    view_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of(cls, image_size: tuple[int, int], preprocessing: Preprocessing) -> ViewGeometry:
        """Follows the host's preprocessing.

        Raises:
            HostError: It is not known how the host resizes.
        """
        (image_h, image_w), (view_h, view_w) = image_size, preprocessing.size
        if min(image_h, image_w) < 1:
            raise HostError(f"original size {image_size}: expected (height, width) in pixels")
        match preprocessing.resize:
            case "squash":
                return cls(
                    image_size, preprocessing.size, (view_h / image_h, view_w / image_w), (0, 0)
                )
            case "shortest":
                to = preprocessing.resize_to or min(view_h, view_w)
                short = min(image_h, image_w)
                # In this order the product is exact, as in torchvision and transformers.
                scaled = (int(to * image_h / short), int(to * image_w / short))
                crop = (_centre(scaled[0], view_h), _centre(scaled[1], view_w))
                return cls(
                    image_size, preprocessing.size, (scaled[0] / image_h, scaled[1] / image_w), crop
                )
            case "pad":
                factor = min(view_h / image_h, view_w / image_w)
                pad = ((view_h - image_h * factor) / 2, (view_w - image_w * factor) / 2)
                return cls(image_size, preprocessing.size, (factor, factor), pad)
            case None:
                raise HostError(
                    "it is not known how this host resizes its pictures: give "
                    "attach(..., processor=...) the host's image processor"
                )

    def to_image(self, map_CHW: Tensor) -> Tensor:
        """Carries a map of the view back to the image.

        Args:
            map_CHW: (C, h, w), any size: it covers the whole view.

        Returns:
            (C, H, W) at ``image_size``; NaN where the tower did not see the image.
        """
        if self.offset == (0, 0) and self.scale == (
            self.view_size[0] / self.image_size[0],
            self.view_size[1] / self.image_size[1],
        ):
            return resize(map_CHW[None], self.image_size)[0]
        axes = []
        for axis in (0, 1):
            edges = torch.arange(self.image_size[axis], device=map_CHW.device) + 0.5
            in_view = edges * self.scale[axis] + self.offset[axis]
            axes.append(in_view / self.view_size[axis] * 2 - 1)
        y_HW, x_HW = torch.meshgrid(*axes, indexing="ij")
        grid_1HW2 = rearrange([x_HW, y_HW], "xy h w -> 1 h w xy").to(map_CHW.dtype)
        map_1CHW = F.grid_sample(
            map_CHW[None], grid_1HW2, padding_mode="border", align_corners=False
        )
        outside_HW = (x_HW.abs() > 1) | (y_HW.abs() > 1)
        return map_1CHW[0].masked_fill(outside_HW, torch.nan)

    def intrinsics(self, image: Intrinsics) -> Intrinsics:
        """(fx, fy, cx, cy) of the image, as those of the view."""
        fx, fy, cx, cy = image
        return (
            fx * self.scale[1],
            fy * self.scale[0],
            (cx + 0.5) * self.scale[1] + self.offset[1] - 0.5,
            (cy + 0.5) * self.scale[0] + self.offset[0] - 0.5,
        )


def _centre(size: int, view: int) -> int:
    """Where torchvision's ``center_crop`` puts the first pixel of a side in the view.

    Negative where it cuts (half pixels go to the even side, as Python rounds), positive where it
    pads a side that is too short (the odd pixel goes behind).
    """
    if size < view:
        return (view - size) // 2
    return -round((size - view) / 2)

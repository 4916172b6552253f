"""Where a tower's view lies in the user's image, and what that does to maps and intrinsics.

Coordinates: integer coordinates are pixel centres; a size is (H, W). Torch is imported by what
takes tensors, so that the numbers alone are there without it.

Axes: C channels, H W a map's size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipdepth_plugin.arguments import Intrinsics, Size, parse_camera, parse_numbers, parse_size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.lenses import LensCheck

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ViewGeometry:
    """How one image became one view: view = image * scale + offset, in pixel edges.

    Attributes:
        image_size: (H, W) of the user's image.
        view_size: (H, W) of the tower's input.
        scale: (vertical, horizontal) factor of the resize.
        offset: (vertical, horizontal) shift by the crop (negative) or the padding (positive).
    """

    image_size: Size
    view_size: Size
    scale: tuple[float, float]
    offset: tuple[float, float] = (0, 0)

    def __post_init__(self) -> None:
        if not traced():
            parse_size(self.image_size, "image_size")
            parse_size(self.view_size, "view_size")
            parse_numbers(self.scale, 2, "scale", positive=True)
            parse_numbers(self.offset, 2, "offset")

    @classmethod
    def squashed(cls, image_size: Size, view_size: Size) -> ViewGeometry:
        """All of the image, stretched to the view."""
        if not traced():
            image_size = parse_size(image_size, "image_size")
            view_size = parse_size(view_size, "view_size")
        height, width = image_size
        return cls(image_size, view_size, (view_size[0] / height, view_size[1] / width))

    @classmethod
    def cropped(cls, image_size: Size, corner: Size, crop: Size, view_size: Size) -> ViewGeometry:
        """The part of size ``crop`` at ``corner`` (top, left) of the image, stretched so."""
        parse_numbers(corner, 2, "corner")
        parse_numbers(crop, 2, "crop", positive=True)
        view_size = parse_size(view_size, "view_size")
        scale = (view_size[0] / crop[0], view_size[1] / crop[1])
        return cls(image_size, view_size, scale, (-corner[0] * scale[0], -corner[1] * scale[1]))

    def to_image(self, map_CHW: Tensor) -> Tensor:
        """Carries a map of the view back to the image.

        Where the view is padded, the map's values of padding never mix into the image: its border
        repeats the outermost pixels of the map that show nothing else.

        Args:
            map_CHW: (C, h, w), any size: it covers the whole view.

        Returns:
            (C, H, W) at ``image_size``, float32 (of float64: float64); NaN where the tower did not
            see the image.

        Raises:
            HostError: The map is no tensor (C, h, w) of real numbers.
        """
        import torch
        import torch.nn.functional as F
        from einops import rearrange

        from clipdepth_plugin.decoders.blocks import resize

        map_CHW = of_numbers(map_CHW, "a map", "(C, h, w)")
        if self == ViewGeometry.squashed(self.image_size, self.view_size):
            return resize(map_CHW[None], self.image_size)[0]
        places, outside = [], []
        for axis, cells in enumerate(map_CHW.shape[1:]):
            edges = (
                torch.arange(self.image_size[axis], dtype=torch.float32, device=map_CHW.device)
                + 0.5
            )
            in_view = edges * self.scale[axis] + self.offset[axis]
            outside.append((in_view < 0) | (in_view > self.view_size[axis]))
            first, last = self.shown(axis, cells)
            in_cells = (in_view / self.view_size[axis] * cells).clamp(first + 0.5, last - 0.5)
            places.append(in_cells / cells * 2 - 1)
        y_HW, x_HW = torch.meshgrid(*places, indexing="ij")
        grid_1HW2 = rearrange([x_HW, y_HW], "xy h w -> 1 h w xy").to(map_CHW.dtype)
        map_1CHW = F.grid_sample(
            map_CHW[None], grid_1HW2, padding_mode="border", align_corners=False
        )
        outside_HW = outside[0][:, None] | outside[1][None]
        return map_1CHW[0].masked_fill(outside_HW, torch.nan)

    def shown(self, axis: int, cells: int) -> tuple[int, int]:
        """The span of a map's cells that show the image alone; if none does, the middle one."""
        size = self.view_size[axis] / cells
        low = max(0.0, self.offset[axis]) / size
        high = self.image_size[axis] * self.scale[axis] + self.offset[axis]
        high = min(float(self.view_size[axis]), high) / size
        # A hair's breadth for the rounding of scales.
        first, last = math.ceil(low - 1e-4), math.floor(high + 1e-4)
        if first < last:
            return first, last
        middle = min(max(int((low + high) / 2), 0), cells - 1)
        return middle, middle + 1

    def intrinsics(self, image: Intrinsics) -> Intrinsics:
        """(fx, fy, cx, cy) of the image, as those of the view."""
        fx, fy, cx, cy = parse_camera(image, "intrinsics")
        return (
            fx * self.scale[1],
            fy * self.scale[0],
            (cx + 0.5) * self.scale[1] + self.offset[1] - 0.5,
            (cy + 0.5) * self.scale[0] + self.offset[0] - 0.5,
        )


@dataclass(frozen=True)
class ImageViews:
    """The views of one image.

    Attributes:
        views: In the order in which the tower sees them.
        overview: Which of them shows the whole image; None where none does.
    """

    views: tuple[ViewGeometry, ...]
    overview: int | None = 0

    def __len__(self) -> int:
        """Number of views."""
        return len(self.views)


def depth_to_points(
    depth_1HW: Tensor, intrinsics: Intrinsics | Sequence[Sequence[float]] | Tensor
) -> Tensor:
    """A depth map as a point cloud, by kornia.

    A map of ``predict(original_sizes=...)`` goes with the intrinsics of the user's own image: the
    host's resize is undone, so nothing is stretched.

    Args:
        depth_1HW: (1, H, W) metres along the optical axis; NaN stays NaN. Relative depth
            (``HeadConfig.metric`` False) gives no points of any scene.
        intrinsics: (fx, fy, cx, cy) or a 3x3 matrix K, in pixels of the map.

    Returns:
        (H, W, 3) metres in the camera's frame: x right, y down, z forward; float32, of a float64
        map float64. Maps of other dtypes are computed in float32, which the camera's numbers need.

    Raises:
        HostError: The map is no tensor (1, H, W) of real numbers, or the intrinsics are no camera's
            of such a map.
    """
    depth_1HW = of_numbers(depth_1HW, "depth", "(1, H, W)")
    if depth_1HW.shape[0] != 1:
        raise HostError(f"depth of shape {tuple(depth_1HW.shape)}: expected one map, (1, H, W)")
    camera = parse_camera(intrinsics, "intrinsics")
    height, width = depth_1HW.shape[1:]
    if not traced():
        LensCheck()(camera, (height, width), "intrinsics")
    # Takes a while to import, and a plug-in that only reads depth never needs it.
    from einops import rearrange
    from kornia.geometry.depth import depth_to_3d

    fx, fy, cx, cy = camera
    camera_133 = depth_1HW.new_tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]])
    points_13HW: Tensor = depth_to_3d(depth_1HW[None], camera_133, normalize_points=False)
    return rearrange(points_13HW, "1 xyz h w -> h w xyz")


def of_numbers(map_CHW: Any, what: str, axes: str) -> Tensor:
    """A map as floats that hold positions and cameras: float64 as it is, others as float32."""
    import torch

    if not isinstance(map_CHW, torch.Tensor):
        raise HostError(
            f"{what} is a {type(map_CHW).__name__}: expected one map, a tensor {axes}; of what "
            "predict(original_sizes=...) gives, one at a time"
        )
    odd = map_CHW.is_complex() or map_CHW.dtype == torch.bool or map_CHW.layout != torch.strided
    if odd or map_CHW.is_quantized:
        raise HostError(
            f"{what} is of {map_CHW.dtype}, {map_CHW.layout}: expected real numbers, dense"
        )
    if map_CHW.ndim != 3 or 0 in map_CHW.shape:
        raise HostError(f"{what} of shape {tuple(map_CHW.shape)}: expected one map, {axes}")
    return map_CHW if map_CHW.dtype == torch.float64 else map_CHW.float()


def traced() -> bool:
    """Whether torch makes a graph of this call: graphs hold no checks of numbers."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()

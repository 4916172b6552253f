"""A picture with its depth and its lens: what the page says and draws of it, and its files.

Axes: H W the picture's own size, 3 red, green, blue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipdepth_plugin.app.model import Depth, camera_of, field_of_view
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.clouds import glb_bytes, ply_bytes
from clipdepth_plugin.files.depth_maps import to_grey, write_depth_png, write_npy
from clipdepth_plugin.files.surfaces import surface_of
from clipdepth_plugin.files.turbo import beside

_CLOUD_POINTS, _POINTER_PIXELS = 500_000, 1 << 20
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

Point = tuple[int, int]
"""Column and row."""


@dataclass(frozen=True)
class Shown:
    """What is on the page.

    Attributes:
        name: Of its files.
        image: RGB.
        depth: Of it.
        focal_px: Of its lens.
        lens: Where the focal length is from.
        factor: Its metres over those of the head's own lens; None: they do not follow from it.
    """

    name: str
    image: Image.Image
    depth: Depth
    focal_px: float
    lens: str
    factor: float | None

    @property
    def degrees(self) -> float:
        """The field of view along the longer side."""
        return field_of_view(self.focal_px, self.image)

    def has(self, point: Point) -> bool:
        """Whether a point is in the picture, and not on the scale beside it."""
        return 0 <= point[0] < self.image.width and 0 <= point[1] < self.image.height

    def metres_at(self, point: Point) -> float:
        """The depth at a point; NaN is none."""
        return float(self.depth.metres_HW[point[1], point[0]])

    def length(self, points: Sequence[Point]) -> float | None:
        """Metres between two points, in space; None without two, or without depth at one."""
        if len(points) != 2:
            return None
        fx, fy, cx, cy = camera_of(self.focal_px, self.image)
        depths = [self.metres_at(point) for point in points]
        places = [
            ((x - cx) / fx * z, (y - cy) / fy * z, z)
            for (x, y), z in zip(points, depths, strict=True)
        ]
        found = math.dist(*places)
        return None if math.isnan(found) else found

    def cost_line(self) -> str:
        """What its depth took."""
        tower, depth = (1e3 * seconds for seconds in self.depth.cost)
        return f"tower {tower:.0f} ms, depth +{depth:.0f} ms"

    def lens_line(self) -> str:
        """Which lens it is, and what that does to the metres."""
        focal = f"focal length {self.focal_px:.0f} px, field of view {self.degrees:.1f}°"
        does = "it changes lengths and the 3D view, not depth"
        if self.factor is not None:
            does = f"depth is {self.factor:.3f} times that of the head's own lens"
        return f"{focal}, {self.lens}; {does}"

    def points_line(self, points: Sequence[Point]) -> str:
        """Depth at points, and the metres between them."""
        said = []
        for point in points:
            metres = self.metres_at(point)
            said.append(f"{point}: {'no depth' if math.isnan(metres) else f'{metres:.3f} m'}")
        length = self.length(points)
        if length is not None:
            said.append(f"distance {length:.3f} m")
        return "; ".join(said) or "click two points of the depth to measure between them"

    def depth_picture(self, points: Sequence[Point] = ()) -> Image.Image:
        """Depth in colours with a scale in metres, and points."""
        picture = Image.fromarray(beside(None, self.depth.metres_HW))
        draw = ImageDraw.Draw(picture)
        radius = max(4, picture.height // 80)
        if len(points) == 2:
            draw.line([*points], _WHITE, max(2, radius // 3))
        for point in points:
            draw.circle(point, radius, _WHITE, _BLACK, max(1, radius // 3))
        return picture

    def confidence_picture(self) -> Image.Image | None:
        """Confidence, white is sure; None where the head predicts none."""
        sure_HW = self.depth.confidence_HW
        return None if sure_HW is None else Image.fromarray(to_grey(sure_HW))

    def pointer_picture(self) -> tuple[Image.Image, int]:
        """Millimetres as red * 65536 + green * 256 + blue of every n-th pixel; and n."""
        metres_HW = self.depth.metres_HW
        step = max(1, math.ceil(math.sqrt(metres_HW.size / _POINTER_PIXELS)))
        metres_HW = np.nan_to_num(metres_HW[::step, ::step].astype(np.float64))
        whole_HW = np.rint(1e3 * metres_HW).clip(0, (1 << 24) - 1).astype(np.uint32)
        bytes_HW3 = np.stack([whole_HW >> 16, whole_HW >> 8, whole_HW], axis=-1) & 255
        return Image.fromarray(bytes_HW3.astype(np.uint8)), step

    def write_files(self, folder: Path) -> list[Path]:
        """Depth as PNG (16-bit, mm) and NPY (metres), and with the lens as PLY and GLB.

        Raises:
            NoDepthError: There is no surface in it for a cloud; PNG and NPY are written.
        """
        metres_HW, sure_HW, _ = self.depth
        suffixes = (".depth.png", ".npy", ".ply", ".glb")
        png, npy, ply, glb = (folder / f"{self.name}{suffix}" for suffix in suffixes)
        write_depth_png(png, metres_HW)
        write_npy(npy, metres_HW)
        surface = surface_of(
            metres_HW,
            camera_of(self.focal_px, self.image),
            self.image,
            confidence=sure_HW,
            max_points=_CLOUD_POINTS,
        )
        write_atomically(ply, ply_bytes(surface))
        write_atomically(glb, glb_bytes(surface))
        return [png, npy, ply, glb]

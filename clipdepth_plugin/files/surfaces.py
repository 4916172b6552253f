"""From a depth map to the surface that is seen: points, normals, and which pixels belong to it.

Seen from a camera, the inverse depth of a plane is an affine function of the pixel. So slopes are
taken of inverse depth, on the side of a pixel where it changes less: a normal at the border of an
object is that of the object. Where a surface is seen at a grazing angle it is no surface but the
ramp that a network draws from a near object to a far one.

Axes: H W pixels of the map, 3 x (right), y (down), z (forward) in metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import parse_camera
from clipdepth_plugin.errors import DepthFileError, NoDepthError, quoted
from clipdepth_plugin.files.depth_maps import DepthMap, one_map
from clipdepth_plugin.files.turbo import colourise
from clipdepth_plugin.lenses import LensCheck

GRAZING_DEGREES = 5.0
"""Between a view ray and the surface; a floor 1.5 m below the camera is seen so 17 m away."""

UNSURE = 0.5
"""Of a map's median confidence; what is less sure is left out."""

MOST_POINTS = 2_000_000

Image_HW3 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Surface:
    """What a depth map shows, on the map's grid or on every n-th pixel of it.

    Attributes:
        points_HW3: float64 metres in the camera's frame: x right, y down, z forward.
        normals_HW3: float64 unit vectors towards the camera.
        keep_HW: Which pixels are part of a surface; the others' values mean nothing.
        picture_HW3: uint8 RGB at the map's whole size.
        step: n.
    """

    points_HW3: NDArray[np.float64]
    normals_HW3: NDArray[np.float64]
    keep_HW: NDArray[np.bool_]
    picture_HW3: Image_HW3
    step: int


def surface_of(
    depth: DepthMap,
    intrinsics: Any,
    image: Image.Image | Image_HW3 | None = None,
    *,
    confidence: DepthMap | None = None,
    max_points: int = MOST_POINTS,
) -> Surface:
    """The surface of a map in metres; ``save_ply`` says what the arguments are.

    Raises:
        DepthFileError: Maps or picture do not fit together.
        NoDepthError: No pixel is part of a surface.
        HostError: The intrinsics are no camera's of such a map.
    """
    depth_HW = one_map(depth, "depth").astype(np.float64)
    size = (int(depth_HW.shape[0]), int(depth_HW.shape[1]))
    camera = parse_camera(intrinsics, "intrinsics")
    LensCheck()(camera, size, "intrinsics")
    rays_HW3 = _rays(camera, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse_HW = np.where(np.isfinite(depth_HW) & (depth_HW > 0), 1 / depth_HW, np.nan)
    normals_HW3 = _normals(inverse_HW, rays_HW3, camera)
    keep_HW = np.isfinite(inverse_HW) & _seen(normals_HW3, rays_HW3)
    if confidence is not None:
        keep_HW &= _sure(_of_size(one_map(confidence, "confidence"), size, "confidence"), keep_HW)
    if not keep_HW.any():
        raise NoDepthError(
            "no surface in this depth map: it has no valid depth, or is seen at a grazing angle "
            f"(under {GRAZING_DEGREES:g} degrees) throughout, as noise is"
        )
    step = max(1, math.ceil(math.sqrt(depth_HW.size / max(1, max_points))))
    with np.errstate(invalid="ignore"):
        points_HW3 = rays_HW3 * np.where(keep_HW, depth_HW, np.nan)[..., None]
    every = (slice(None, None, step), slice(None, None, step))
    return Surface(
        points_HW3[every],
        normals_HW3[every],
        keep_HW[every],
        _picture(image, depth_HW),
        step,
    )


def grazing(normals_K3: NDArray[Any], views_K3: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether surfaces are seen at so small an angle that they are none; vectors of any length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths_K = np.linalg.norm(normals_K3, axis=-1) * np.linalg.norm(views_K3, axis=-1)
        sine_K = np.abs((normals_K3 * views_K3).sum(-1)) / lengths_K
        clear_K: NDArray[np.bool_] = sine_K >= math.sin(math.radians(GRAZING_DEGREES))
        return ~clear_K  # NaN, too


def _rays(camera: tuple[float, ...], size: tuple[int, int]) -> NDArray[np.float64]:
    """Of each pixel, to the plane at 1 m."""
    fx, fy, cx, cy = camera
    x_HW, y_HW = np.meshgrid((np.arange(size[1]) - cx) / fx, (np.arange(size[0]) - cy) / fy)
    return np.stack([x_HW, y_HW, np.ones(size)], axis=-1)


def _normals(
    inverse_HW: NDArray[np.float64], rays_HW3: NDArray[np.float64], camera: tuple[float, ...]
) -> NDArray[np.float64]:
    """1 / z = a x + b y + c on the plane n . p = 1 with n = (a, b, c), x and y being of the ray."""
    a_HW = _slope(inverse_HW, 1) * camera[0]
    b_HW = _slope(inverse_HW, 0) * camera[1]
    c_HW = inverse_HW - a_HW * rays_HW3[..., 0] - b_HW * rays_HW3[..., 1]
    normals_HW3 = -np.stack([a_HW, b_HW, c_HW], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        normals_HW3 /= np.linalg.norm(normals_HW3, axis=-1, keepdims=True)
    return normals_HW3


def _slope(map_HW: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The smaller of the differences to both neighbours; NaN where neither is known."""
    step = np.diff(map_HW, axis=axis)
    none = np.full_like(np.take(map_HW, [0], axis), np.nan)
    before, after = np.concatenate([none, step], axis), np.concatenate([step, none], axis)
    with np.errstate(invalid="ignore"):
        take_after = np.isnan(before) | (np.abs(after) < np.abs(before))
    return np.where(take_after, after, before)


def _seen(normals_HW3: NDArray[Any], rays_HW3: NDArray[Any]) -> NDArray[np.bool_]:
    return ~grazing(normals_HW3, rays_HW3)


def _sure(confidence_HW: NDArray[Any], keep_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    known = confidence_HW[keep_HW & np.isfinite(confidence_HW)]
    least = UNSURE * float(np.median(known)) if known.size else 0.0
    with np.errstate(invalid="ignore"):
        sure_HW: NDArray[np.bool_] = confidence_HW >= least
    return sure_HW


def _picture(image: Image.Image | Image_HW3 | None, depth_HW: NDArray[np.float64]) -> Image_HW3:
    if image is None:
        return colourise(depth_HW)
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise DepthFileError(
            f"image: got {quoted(getattr(image, 'shape', image))}, expected a picture "
            "(PIL.Image) or (H, W, 3) uint8 RGB"
        )
    return _of_size(image, (depth_HW.shape[0], depth_HW.shape[1]), "image")


def _of_size(map_HW: NDArray[Any], size: tuple[int, int], what: str) -> NDArray[Any]:
    if map_HW.shape[:2] != size:
        raise DepthFileError(
            f"{what} of {map_HW.shape[0]} x {map_HW.shape[1]} (height, width) beside depth of "
            f"{size[0]} x {size[1]}: they are of one size; predict(original_sizes=...) gives "
            "depth at the picture's"
        )
    return map_HW

"""A table-top as a robot's camera sees one, with its exact depth: ray by ray, in NumPy.

Wood, bricks and gravel are crops of the pictures in scikit-image's wheel.

Axes: H W pixels, Y X a texture's pixels, N rays or points, S surfaces. The world is in metres: x to
the right, y away, z up; the table is at z = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.files.pictures import load_image

Array = NDArray[np.float64]
Point = tuple[float, float, float]
Hit = Callable[[Array, Array], tuple[Array, Array]]
"""Origins and directions of length 1, (N, 3) each -> the distance along each ray, inf where it
misses, and the (N, 3) normals there."""
Paint = Callable[[Array], Array]
"""(N, 3) points on a surface -> (N, 3) RGB in 0..1."""

FOCAL_PX = 280.0
_HEIGHT, _WIDTH, _SAMPLES = 240, 320, 3
_EYE, _TARGET = np.array([0.0, -0.75, 0.55]), np.array([0.02, 0.12, 0.02])
_LIGHT = np.array([-0.41, -0.49, 0.77])
_AMBIENT = 0.45
_NEAREST = 1e-4


@dataclass(frozen=True)
class Surface:
    """Something that is seen."""

    hit: Hit
    paint: Paint
    casts_shadow: bool = True


def plane(normal: Point, offset: float) -> Hit:
    """The points p with normal . p = offset."""
    normal_3 = np.array(normal)

    def hit(origin_N3: Array, ray_N3: Array) -> tuple[Array, Array]:
        t_N = (offset - origin_N3 @ normal_3) / _not_zero(ray_N3 @ normal_3)
        return np.where(t_N > _NEAREST, t_N, np.inf), np.broadcast_to(normal_3, ray_N3.shape)

    return hit


def ball(centre: Point, radius: float) -> Hit:
    """A sphere."""

    def hit(origin_N3: Array, ray_N3: Array) -> tuple[Array, Array]:
        from_N3 = origin_N3 - np.array(centre)
        half_N = (from_N3 * ray_N3).sum(axis=1)
        t_N = _first_root(half_N, (from_N3**2).sum(axis=1) - radius**2)
        return t_N, _along(from_N3, ray_N3, t_N) / radius

    return hit


def box(centre: Point, size: Point, degrees: float = 0.0) -> Hit:
    """A box, turned about the vertical."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn_33 = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    half_3 = np.array(size) / 2

    def hit(origin_N3: Array, ray_N3: Array) -> tuple[Array, Array]:
        from_N3, ray_N3 = (origin_N3 - np.array(centre)) @ turn_33, _not_zero(ray_N3 @ turn_33)
        side_N3 = np.sign(ray_N3) * half_3
        enters_N3, leaves_N3 = (-side_N3 - from_N3) / ray_N3, (side_N3 - from_N3) / ray_N3
        t_N, axis_N = enters_N3.max(axis=1), enters_N3.argmax(axis=1)
        met_N = (t_N > _NEAREST) & (t_N < leaves_N3.min(axis=1))
        normal_N3 = -np.sign(ray_N3) * (np.arange(3) == axis_N[:, None])
        return np.where(met_N, t_N, np.inf), normal_N3 @ turn_33.T

    return hit


def can(foot: Point, radius: float, height: float) -> Hit:
    """A standing cylinder with a lid."""

    def hit(origin_N3: Array, ray_N3: Array) -> tuple[Array, Array]:
        from_N3 = origin_N3 - np.array(foot)
        square_N = _not_zero((ray_N3[:, :2] ** 2).sum(axis=1))
        half_N = (from_N3[:, :2] * ray_N3[:, :2]).sum(axis=1) / square_N
        t_N = _first_root(half_N, ((from_N3[:, :2] ** 2).sum(axis=1) - radius**2) / square_N)
        at_N3 = _along(from_N3, ray_N3, t_N)
        t_N = np.where((at_N3[:, 2] > 0) & (at_N3[:, 2] < height), t_N, np.inf)
        lid_N = (height - from_N3[:, 2]) / _not_zero(ray_N3[:, 2])
        across_N = (_along(from_N3, ray_N3, lid_N)[:, :2] ** 2).sum(axis=1)
        on_lid_N = (lid_N > _NEAREST) & (lid_N < t_N) & (across_N < radius**2)
        normal_N3 = np.where(on_lid_N[:, None], [0.0, 0.0, 1.0], at_N3 * [1, 1, 0] / radius)
        return np.where(on_lid_N, lid_N, t_N), normal_N3

    return hit


def _first_root(half_N: Array, rest_N: Array) -> Array:
    """The smaller t with t^2 + 2 half t + rest = 0; inf where there is none ahead."""
    square_N = half_N**2 - rest_N
    t_N = -half_N - np.sqrt(np.maximum(square_N, 0))
    return np.where((square_N > 0) & (t_N > _NEAREST), t_N, np.inf)


def _along(origin_N3: Array, ray_N3: Array, t_N: Array) -> Array:
    return origin_N3 + ray_N3 * np.where(np.isfinite(t_N), t_N, 0)[:, None]


def _not_zero(x: Array) -> Array:
    return np.where(np.abs(x) < 1e-9, 1e-9, x)


def plain(red: float, green: float, blue: float) -> Paint:
    """One colour."""
    return lambda point_N3: np.broadcast_to([red, green, blue], point_N3.shape)


def tiled(image: Image.Image, metres: float, axes: tuple[int, int]) -> Paint:
    """A picture in mirrored tiles, ``metres`` wide; ``axes`` are the world's across and down it."""
    image_YX3 = np.asarray(image, dtype=np.float64) / 255
    rows_YX3 = np.concatenate([image_YX3, image_YX3[::-1]])
    tile_YX3 = np.concatenate([rows_YX3, rows_YX3[:, ::-1]], axis=1)
    scale = image_YX3.shape[1] / metres

    def paint(point_N3: Array) -> Array:
        x_N, y_N = (np.floor(point_N3[:, axis] * scale).astype(int) for axis in axes)
        painted_N3: Array = tile_YX3[y_N % tile_YX3.shape[0], x_N % tile_YX3.shape[1]]
        return painted_N3

    return paint


def _scene(data: Path) -> list[Surface]:
    wood = load_image(data / "coffee.png").crop((0, 300, 60, 400))
    bricks, gravel = (load_image(data / f"{name}.png") for name in ("brick", "gravel"))
    return [
        Surface(plane((0, 0, 1), -0.75), tiled(gravel, 1.0, (0, 1)), casts_shadow=False),
        Surface(plane((0, -1, 0), -1.3), tiled(bricks, 1.6, (0, 2)), casts_shadow=False),
        Surface(box((0, 0.25, -0.02), (1.5, 0.9, 0.04)), tiled(wood, 0.12, (0, 1))),
        Surface(ball((0.16, 0.02, 0.05), 0.05), plain(0.9, 0.45, 0.1)),
        Surface(ball((-0.27, -0.1, 0.035), 0.035), plain(0.75, 0.85, 0.2)),
        Surface(box((-0.12, 0.18, 0.09), (0.2, 0.1, 0.18), 24), plain(0.85, 0.7, 0.25)),
        Surface(box((-0.08, -0.1, 0.03), (0.09, 0.13, 0.06), -35), plain(0.15, 0.3, 0.7)),
        Surface(box((0.33, 0.3, 0.12), (0.22, 0.16, 0.24), -15), plain(0.62, 0.46, 0.3)),
        Surface(can((0.05, 0.12, 0), 0.034, 0.125), plain(0.75, 0.08, 0.1)),
        Surface(can((0.3, -0.05, 0), 0.04, 0.09), plain(0.93, 0.93, 0.9)),
    ]


def _nearest(
    surfaces: Sequence[Surface], origin_N3: Array, ray_N3: Array
) -> tuple[Array, NDArray[np.intp], Array]:
    """Distance along each ray to the nearest surface, its number, and its normal there."""
    hits = [one.hit(origin_N3, ray_N3) for one in surfaces]
    t_SN = np.stack([t_N for t_N, _ in hits])
    number_N = t_SN.argmin(axis=0)
    normal_SN3 = np.stack([normal_N3 for _, normal_N3 in hits])
    return t_SN.min(axis=0), number_N, normal_SN3[number_N, np.arange(len(ray_N3))]


def _rays() -> Array:
    """(N, 3), several for each pixel, row by row; of depth 1 each."""
    ahead_3 = (_TARGET - _EYE) / np.linalg.norm(_TARGET - _EYE)
    right_3 = np.cross(ahead_3, [0.0, 0.0, 1.0])
    right_3 /= np.linalg.norm(right_3)
    y_HW, x_HW = np.mgrid[: _HEIGHT * _SAMPLES, : _WIDTH * _SAMPLES] + 0.5
    across_N1 = (x_HW.reshape(-1, 1) / _SAMPLES - _WIDTH / 2) / FOCAL_PX
    down_N1 = (y_HW.reshape(-1, 1) / _SAMPLES - _HEIGHT / 2) / FOCAL_PX
    rays_N3: Array = ahead_3 + across_N1 * right_3 + down_N1 * np.cross(ahead_3, right_3)
    return rays_N3


def render(data: Path) -> tuple[Image.Image, Array]:
    """The picture, and its (H, W) planar depth in metres; ``data`` has scikit-image's pictures."""
    surfaces, ray_N3 = _scene(data), _rays()
    length_N = np.linalg.norm(ray_N3, axis=1)
    t_N, number_N, normal_N3 = _nearest(
        surfaces, np.broadcast_to(_EYE, ray_N3.shape), ray_N3 / length_N[:, None]
    )
    point_N3 = _EYE + ray_N3 * (t_N / length_N)[:, None]
    rgb_N3 = np.zeros_like(point_N3)
    for number, surface in enumerate(surfaces):
        rgb_N3[number_N == number] = surface.paint(point_N3[number_N == number])
    above = [one for one in surfaces if one.casts_shadow]
    to_light_N3 = np.broadcast_to(_LIGHT, ray_N3.shape)
    lit_N = np.isinf(_nearest(above, point_N3 + 1e-3 * normal_N3, to_light_N3)[0])
    light_N = _AMBIENT + (1 - _AMBIENT) * lit_N * np.maximum(normal_N3 @ _LIGHT, 0)
    grid = (_HEIGHT, _SAMPLES, _WIDTH, _SAMPLES)
    rgb_HW3 = (rgb_N3 * light_N[:, None]).reshape(*grid, 3).mean(axis=(1, 3))
    # The sample in the middle: a mean over an edge would be the depth of nothing.
    depth_HW = (t_N / length_N).reshape(grid)[:, _SAMPLES // 2, :, _SAMPLES // 2]
    return Image.fromarray((255 * rgb_HW3).round().astype(np.uint8)), depth_HW

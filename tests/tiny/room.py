"""A room and a box in it by ray casting: exact depth, and which plane each pixel shows.

Axes: H W pixels, 3 x (right), y (down), z (forward), P planes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TURN = np.radians(25.0)
_ROTATION = np.array(
    [[np.cos(_TURN), 0, np.sin(_TURN)], [0, 1, 0], [-np.sin(_TURN), 0, np.cos(_TURN)]]
)
ROOM = ((-2.0, -1.4, -3.0), (2.5, 1.2, 4.0))
"""Two corners, in metres of a frame that is turned about the camera's vertical axis."""
BOX = ((-1.4, 0.2, 1.6), (-0.6, 1.2, 2.2))
"""It stands on the floor, and its sides hide a part of the walls."""
BOX_SIZE = (0.8, 1.0, 0.6)


class Seen(NamedTuple):
    """What rays hit.

    Attributes:
        depth_HW: Planar z.
        plane_HW: 0 to 5 the room's, 6 to 11 the box's: low and high side of x, y, z.
    """

    depth_HW: Array
    plane_HW: NDArray[np.int64]


def cast(rays_HW3: Array) -> Seen:
    """What rays from the camera hit; their z is 1."""
    rays_HW3 = rays_HW3 @ _ROTATION + 1e-12  # none is parallel to a side
    room_HW6, near_HW6 = (
        np.stack(
            [np.array(end)[axis] / rays_HW3[..., axis] for axis in range(3) for end in ends], -1
        )
        for ends in (ROOM, BOX)
    )
    room_HW6[~(room_HW6 > 0)] = np.inf
    for plane in range(6):
        points_HW3 = rays_HW3 * near_HW6[..., plane, None]
        beside = [
            (points_HW3[..., other] < BOX[0][other]) | (points_HW3[..., other] > BOX[1][other])
            for other in range(3)
            if other != plane // 2
        ]
        near_HW6[..., plane][beside[0] | beside[1] | ~(near_HW6[..., plane] > 0)] = np.inf
    both_HWP = np.concatenate([room_HW6, near_HW6], axis=-1)
    plane_HW = both_HWP.argmin(-1)
    return Seen(both_HWP.min(-1), plane_HW)


def pinhole_rays(camera: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    """(H, W, 3), z is 1; integer coordinates are pixel centres."""
    fx, fy, cx, cy = camera
    x_HW, y_HW = np.meshgrid((np.arange(size[1]) - cx) / fx, (np.arange(size[0]) - cy) / fy)
    return np.stack([x_HW, y_HW, np.ones(size)], -1)


def colours(plane_HW: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A colour of its own for each plane."""
    palette = np.random.default_rng(1).integers(30, 226, (12, 3)).astype(np.uint8)
    return palette[plane_HW]


def fitted(points_N3: Array) -> tuple[Array, float, float]:
    """Unit normal, offset and RMS distance of the plane through points."""
    middle = points_N3.mean(0)
    normal: Array = np.linalg.svd(points_N3 - middle, full_matrices=False)[2][-1]
    offset = float(normal @ middle)
    return normal, offset, float(np.sqrt(np.mean((points_N3 @ normal - offset) ** 2)))


def corner(planes: list[tuple[Array, float, float]]) -> Array:
    """Where three planes meet."""
    normals_33, offsets_3 = (
        np.stack([one[0] for one in planes]),
        np.array([one[1] for one in planes]),
    )
    return np.asarray(np.linalg.solve(normals_33, offsets_3), np.float64)

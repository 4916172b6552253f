"""Planes of rendered rooms, in clouds of their true depth.

    python -m tests.scripts.room_planes FOLDER

FOLDER is a sequence of an RGB-D set with true depth. Of each frame the three largest planes of the
cloud are found by RANSAC, of points within 0.5%; printed is the worst RMS of a point's distance
over its depth. Depth that is rounded to 9 binary digits gives up to 0.2%.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clipdepth_plugin.files.surfaces import surface_of
from tests.tiny.room import Array, fitted

_NEAR = 0.005
_LEAST = 2000


def largest_plane(points_N3: Array, random: np.random.Generator) -> Array:
    """Which points (N,) lie in the plane that holds the most, within 0.5% of their depth."""
    best_N = np.zeros(len(points_N3), bool)
    for _ in range(100):
        normal, offset, _ = fitted(points_N3[random.choice(len(points_N3), 3, replace=False)])
        near_N = np.abs(points_N3 @ normal - offset) < _NEAR * points_N3[:, 2]
        best_N = near_N if near_N.sum() > best_N.sum() else best_N
    return best_N


def main() -> None:
    """Prints a line a frame."""
    folder, random = Path(sys.argv[1]), np.random.default_rng(0)
    scale = json.loads((folder.parents[1] / "meta.json").read_text())["depth_scale"]
    cameras = json.loads((folder / "intrinsics.json").read_text())
    for path in sorted(folder.glob("*.depth.png")):
        name = path.name.removesuffix(".depth.png")
        depth_HW = np.asarray(Image.open(path)).astype(np.float64) / scale
        cloud = surface_of(depth_HW, cameras[name])
        points_N3 = cloud.points_HW3[cloud.keep_HW]
        worst, share = 0.0, len(points_N3) / np.count_nonzero(depth_HW)
        for _ in range(3):
            if len(points_N3) < _LEAST:
                break
            inside_N = largest_plane(points_N3, random).astype(bool)
            plane_N3 = points_N3[inside_N]
            normal, offset, _ = fitted(plane_N3)
            apart_N = (plane_N3 @ normal - offset) / plane_N3[:, 2]
            worst = max(worst, float(np.sqrt(np.mean(apart_N**2))))
            points_N3 = points_N3[~inside_N]
        print(f"{name}: kept {share:.1%} of the pixels, worst plane {worst:.3%} of depth")  # noqa: T201


if __name__ == "__main__":
    main()

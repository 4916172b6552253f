"""Planes and lengths of point clouds of true depth, in rendered scenes.

    python results/point_clouds.py > results/point_clouds.md

CLIPDEPTH_DATA is the folder of the RGB-D sets. A window shows a plane where its true inverse depth
is affine in the pixel to 0.3% everywhere: its points are not looked at to choose it. The points of
a window are those that project into it.

Axes: H W a picture's size, N points or pixels, K columns of a PLY file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.data import DataConfig, Sample, open_dataset
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.files import save_ply
from clipdepth_plugin.latency.report import describe, markdown_table

SETS = ("libero", "rooms")
WINDOW = 32
FLAT = 3e-3  # the stored depth of rooms is rounded to 0.2% at places
Array = NDArray[np.float64]


class Measured(NamedTuple):
    """Of one window."""

    rms: float
    """Distance of its points from their plane, over their mean depth."""
    length: float
    """Relative error of the distance between the points at its opposite corners."""


def read_points(path: Path) -> Array:
    """(N, 3) of a binary PLY file, whose first columns are x, y, z."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    columns = [line.split()[1:] for line in head.splitlines() if line.startswith(b"property")]
    kinds = {b"float": "<f4", b"uchar": "u1"}
    table = np.frombuffer(body, [(name.decode(), kinds[kind]) for kind, name in columns])
    return np.stack([table[name] for name in "xyz"], axis=1).astype(np.float64)


def rays(u_N: Array, v_N: Array, camera: tuple[float, float, float, float]) -> Array:
    """(N, 3), z is 1; whole numbers are centres of pixels."""
    fx, fy, cx, cy = camera
    return np.stack([(u_N - cx) / fx, (v_N - cy) / fy, np.ones_like(u_N)], axis=1)


def windows(sample: Sample, folder: Path) -> Iterator[Measured]:
    """Those of a picture that show planes."""
    assert sample.intrinsics is not None
    depth_HW, camera = sample.depth_1HW[0].double().numpy(), sample.intrinsics
    save_ply(folder / "cloud.ply", depth_HW, camera)
    points_N3 = read_points(folder / "cloud.ply")
    fx, fy, cx, cy = camera
    u_N = points_N3[:, 0] / points_N3[:, 2] * fx + cx
    v_N = points_N3[:, 1] / points_N3[:, 2] * fy + cy
    height, width = depth_HW.shape
    for top in range(0, height - WINDOW + 1, WINDOW):
        for left in range(0, width - WINDOW + 1, WINDOW):
            v_P, u_P = (
                one.ravel() + at
                for one, at in zip(
                    np.mgrid[:WINDOW, :WINDOW].astype(float), (top, left), strict=True
                )
            )
            depth_P = depth_HW[top : top + WINDOW, left : left + WINDOW].ravel()
            if not (depth_P > 0).all():
                continue
            inverse_P = 1 / depth_P
            terms_P3 = np.stack([u_P, v_P, np.ones_like(u_P)], axis=1)
            plane = np.linalg.lstsq(terms_P3, inverse_P, rcond=None)[0]
            if np.abs(terms_P3 @ plane / inverse_P - 1).max() > FLAT:
                continue
            inside_N = (np.abs(u_N - left - WINDOW / 2 + 0.5) < WINDOW / 2) & (
                np.abs(v_N - top - WINDOW / 2 + 0.5) < WINDOW / 2
            )
            mine_N3 = points_N3[inside_N]
            if len(mine_N3) < WINDOW**2:  # seen at less than 5 degrees: left out of the cloud
                continue
            middle = mine_N3.mean(0)
            off_N = (mine_N3 - middle) @ np.linalg.svd(mine_N3 - middle, full_matrices=False)[2][-1]
            ends = np.array([[left, top], [left + WINDOW - 1, top + WINDOW - 1]], dtype=float)
            inverse_2 = ends @ plane[:2] + plane[2]
            true_23 = rays(ends[:, 0], ends[:, 1], camera) / inverse_2[:, None]
            at_2 = [np.hypot(u_N - u, v_N - v).argmin() for u, v in ends]
            lengths = [np.linalg.norm(x_23[1] - x_23[0]) for x_23 in (points_N3[at_2], true_23)]
            rms = float(np.sqrt((off_N**2).mean()) / middle[2])
            yield Measured(rms, float(abs(lengths[0] / lengths[1] - 1)))


def main() -> None:
    """Measures, and prints Markdown."""
    rows = []
    for name in SETS:
        data = open_dataset(DataConfig(format="rgbd", root=f"$CLIPDEPTH_DATA/{name}", split="test"))
        with tempfile.TemporaryDirectory() as folder:
            found = [one for sample in data for one in windows(sample, Path(folder))]
        for what, values in zip(
            ("RMS of planes, % of depth", "lengths, % off"), zip(*found, strict=True), strict=True
        ):
            percent = 100 * np.array(values)
            cells = (
                f"{np.median(percent):.3f}",
                f"{np.quantile(percent, 0.95):.3f}",
                f"{percent.max():.3f}",
            )
            rows.append((name, str(len(found)), what, *cells))
    print("# Point clouds of true depth\n")
    print(
        f"Windows of {WINDOW} x {WINDOW} pixels of the test sets that show one plane; the points "
        "that `save_ply` gives there.\nLengths are between the points at opposite corners. Fisheye "
        "and radial lenses are held by\n`tests/test_camera_files.py` on a ray-cast room. Stored "
        "depth is rounded, in far parts of rooms by 0.2%,\nwhich single points, and so lengths, "
        "show.\n"
    )
    header = ("set", "planes", "", "median", "95%", "worst")
    print("\n".join(markdown_table(header, rows)))
    print(
        "\n" + describe(describe_environment(("python", "results/point_clouds.py", *sys.argv[1:])))
    )


if __name__ == "__main__":
    main()

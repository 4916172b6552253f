"""Flicker, error and lag of a video's depth maps, from its true depth and its camera's motion.

Axes: H W a picture's size, P pixels that are compared.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import Intrinsics

Array = NDArray[np.float64]
STEP = 3
"""Every third pixel of every third row is compared."""
OCCLUDED = 0.05
"""A pixel is the same point in the next frame where its true depth, moved, agrees so well."""
CHANGED = 0.1
"""Log depth by which a pixel's truth changes where something has come or gone."""


@dataclass(frozen=True)
class Video:
    """Frames with true depth (H, W), of which 0 is none.

    ``motion``: (4, 4) from each frame's camera to the next one's; None where it is not known.
    """

    pictures: list[Path]
    truth: list[Array]
    camera: Intrinsics
    motion: list[Array | None]


def open_video(folder: Path) -> Video:
    """A rendered one (``poses.json``, camera to world, beside it) or a sequence of the data."""
    pictures = sorted(folder.glob("*.jpg"))
    meta = folder.parents[1] / "meta.json"
    if (folder / "poses.json").exists():
        camera = next(iter(json.loads((folder / "intrinsics.json").read_text()).values()))
        poses = json.loads((folder / "poses.json").read_text())
        worlds = [np.array(poses[picture.stem]) for picture in pictures]
        truth = [_depth(picture, 3000) for picture in pictures]
        motion: list[Array | None] = [
            np.linalg.inv(after) @ before for before, after in itertools.pairwise(worlds)
        ]
    else:
        says = json.loads(meta.read_text())
        camera = says["intrinsics"]["default"]
        truth = [_depth(picture, says["depth_scale"]) for picture in pictures]
        motion = estimated_motion(pictures, truth, camera)
    fx, fy, cx, cy = camera
    return Video(pictures, truth, (fx, fy, cx, cy), motion)


def _depth(picture: Path, scale: float) -> Array:
    return np.asarray(Image.open(picture.with_suffix(".depth.png")), dtype=np.float64) / scale


def estimated_motion(
    pictures: Sequence[Path], truth: Sequence[Array], camera: Intrinsics
) -> list[Array | None]:
    """By SIFT, true depth and PnP with RANSAC (OpenCV); None with fewer than 20 points agreeing."""
    import cv2  # of the extra "dev"

    fx, fy, cx, cy = camera
    lens = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    sift = cv2.SIFT_create(1500)  # type: ignore[attr-defined, unused-ignore]
    seen = [
        sift.detectAndCompute(np.asarray(Image.open(one).convert("L")), None) for one in pictures
    ]
    motion: list[Array | None] = []
    for (points, words), (points_after, words_after), depth_HW in zip(
        seen, seen[1:], truth, strict=False
    ):
        pairs = cv2.BFMatcher().knnMatch(words, words_after, k=2)
        good = [first for first, second in pairs if first.distance < 0.75 * second.distance]
        here = np.array([points[one.queryIdx].pt for one in good]).reshape(-1, 2)
        there = np.array([points_after[one.trainIdx].pt for one in good]).reshape(-1, 2)
        z = depth_HW[here[:, 1].round().astype(int), here[:, 0].round().astype(int)]
        known = z > 0
        rays = np.stack([(here[:, 0] - cx) / fx, (here[:, 1] - cy) / fy, np.ones(len(z))], axis=1)
        found = None
        if known.sum() >= 20:
            solid = (rays * z[:, None])[known]
            worked, turn, shift, inliers = cv2.solvePnPRansac(
                solid, there[known], lens, None, iterationsCount=300, reprojectionError=1.5
            )
            if worked and inliers is not None and len(inliers) >= 20:
                found = np.eye(4)
                found[:3, :3], found[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
        motion.append(found)
    return motion


def alignment_error(video: Video, maps: Sequence[Array]) -> float:
    """Temporal alignment error, percent (Video Depth Anything, arXiv 2501.12375, section 4.1).

    The maps are scaled to the truth by one median ratio for the video. For each two neighbouring
    frames and in both directions the depth of one is carried into the other by the camera's motion
    and compared with the depth there: the mean of |carried - there| / there over the pixels that
    the truth says are seen in both and at rest.
    """
    known = [truth > 0 for truth in video.truth]
    ratios = [t[k] / m[k] for t, m, k in zip(video.truth, maps, known, strict=True)]
    scale = float(np.median(np.concatenate(ratios)))
    errors = []
    for index, motion in enumerate(video.motion):
        if motion is None:
            continue
        back = np.linalg.inv(motion).astype(np.float64)
        ways = ((index, index + 1, motion), (index + 1, index, back))
        for before, after, move in ways:
            visible_P = _visible(video, before, after, move)
            carried_P, y_P, x_P, inside_P = _carried(video, maps[before] * scale, move)
            compared_P = visible_P & inside_P
            if visible_P.mean() < 0.05 or not compared_P.any():
                continue
            there_P = maps[after][y_P[compared_P], x_P[compared_P]] * scale
            errors.append(np.mean(np.abs(carried_P[compared_P] - there_P) / there_P))
    return 100 * float(np.mean(errors))


def _visible(video: Video, before: int, after: int, move: Array) -> NDArray[np.bool_]:
    carried_P, y_P, x_P, inside_P = _carried(video, video.truth[before], move)
    there_P = video.truth[after][y_P, x_P]
    known_P = (video.truth[before][1::STEP, 1::STEP].ravel() > 0) & (there_P > 0) & inside_P
    same: NDArray[np.bool_] = known_P & (np.abs(carried_P - there_P) < OCCLUDED * there_P)
    return same


def _carried(
    video: Video, depth_HW: Array, move: Array
) -> tuple[Array, NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Depth in the other camera, row, column (clipped) and whether that is in the picture."""
    height, width = depth_HW.shape
    fx, fy, cx, cy = video.camera
    v_P, u_P = (axis.ravel() for axis in np.mgrid[1:height:STEP, 1:width:STEP])
    rays_3P = np.stack([(u_P - cx) / fx, (v_P - cy) / fy, np.ones(u_P.size)])
    moved_3P = move[:3, :3] @ (rays_3P * depth_HW[v_P, u_P]) + move[:3, 3:]
    z_P = np.maximum(moved_3P[2], 1e-3)
    x_P = np.rint(moved_3P[0] / z_P * fx + cx).astype(np.intp)
    y_P = np.rint(moved_3P[1] / z_P * fy + cy).astype(np.intp)
    inside_P = (moved_3P[2] > 0.05) & (x_P >= 0) & (y_P >= 0) & (x_P < width) & (y_P < height)
    return moved_3P[2], y_P.clip(0, height - 1), x_P.clip(0, width - 1), inside_P


def absrel(video: Video, maps: Sequence[Array], *, aligned: bool = False) -> float:
    """Mean over the frames of mean |map - truth| / truth; ``aligned``: by each frame's median."""
    errors = []
    for truth_HW, map_HW in zip(video.truth, maps, strict=True):
        known = truth_HW > 0
        truth, depth = truth_HW[known], map_HW[known]
        if aligned:
            depth = depth * np.median(truth / depth)
        errors.append(np.mean(np.abs(depth - truth) / truth))
    return float(np.mean(errors))


def lag(video: Video, maps: Sequence[Array], raw: Sequence[Array]) -> float:
    """By how many frames the maps lag behind the raw ones where the truth changes.

    There log(map / raw), less its median over the frame, is what is kept of the frame before; the
    result is its least-squares share of the truth's change: 0, nothing; 1, all of it.
    """
    kept, change = [], []
    for index in range(1, len(maps)):
        before, now = (video.truth[k][1::STEP, 1::STEP] for k in (index - 1, index))
        step = np.log(np.maximum(before, 1e-3) / np.maximum(now, 1e-3))
        changed = (before > 0) & (now > 0) & (np.abs(step) > CHANGED)
        added = np.log(maps[index] / raw[index])[1::STEP, 1::STEP]
        kept.append((added - np.median(added))[changed])
        change.append(step[changed])
    steps = np.concatenate(change)
    return float((np.concatenate(kept) * steps).sum() / (steps**2).sum())

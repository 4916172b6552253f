"""Small LeRobot data sets, made by LeRobot, and a teacher whose depth is a function of colour.

Axes: H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.labelling.fake import FakeSource

CAMERAS = ("top", "wrist", "side")
SIZE = (64, 96)


class Teacher(FakeSource):
    """Metres: 0.5 + red / 50; nothing where there is no red."""

    def depth(self, red_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(red_HW > 0, super().depth(red_HW), np.nan).astype(np.float32)


def teacher() -> Teacher:
    return Teacher()


def picture(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A ramp of red with a black corner, other than that of other seeds."""
    height, width = size
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    image_HW3[..., 0] = np.linspace(40, 200, width).astype(np.uint8) + seed % 50
    image_HW3[..., 1] = seed % 256
    image_HW3[: height // 4, : width // 4] = 0
    return image_HW3


def make_set(
    root: Path,
    lengths: Sequence[int] = (4, 6),
    cameras: Sequence[str] = CAMERAS,
    *,
    size: tuple[int, int] = SIZE,
    dtype: str = "video",
    fps: int = 10,
    keys: Sequence[str] = (),
    **given: Any,
) -> Path:
    """A data set of episodes; ``keys``: whole keys, in place of cameras' names."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    keys = keys or [f"observation.images.{one}" for one in cameras]
    names = ["height", "width", "channels"]
    features: dict[str, Any] = {
        key: {"dtype": dtype, "shape": (*size, 3), "names": names} for key in keys
    }
    features["observation.state"] = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    features["action"] = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    encoder = RGBEncoderConfig(vcodec="h264", preset="ultrafast")
    given = {"rgb_encoder": encoder, "video_backend": "pyav", **given}
    rows = LeRobotDataset.create("org/set", fps, features, root=root, **given)
    for episode, length in enumerate(lengths):
        for frame in range(length):
            row: dict[str, Any] = {
                key: picture(37 * episode + 11 * frame + 5 * at, size)
                for at, key in enumerate(keys)
            }
            row["observation.state"] = np.array([episode, frame], np.float32)
            row["action"] = np.array([frame, episode], np.float32)
            rows.add_frame({**row, "task": f"task {episode % 2}"})
        rows.save_episode(parallel_encoding=False)
    rows.finalize()
    return root


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> hash of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

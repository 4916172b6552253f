"""What the tests of ``clipdepth annotate`` share: a job, and what LeRobot reads of its data set.

Axes: H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from clipdepth_plugin.annotating.encoding import depth_encoder, levels
from clipdepth_plugin.annotating.settings import AnnotateJob
from tests.lerobot.sets import CAMERAS, Teacher, teacher

KEYS = [f"observation.images.{one}" for one in CAMERAS]


def job(dataset: Path, folder: Path, **given: Any) -> AnnotateJob:
    return AnnotateJob(dataset=str(dataset), folder=folder, **{"source": teacher, **given})


def read(folder: Path, **given: Any) -> LeRobotDataset:
    options = {"video_backend": "pyav", "depth_output_unit": "m", **given}
    return LeRobotDataset("org/set", root=folder, **options)


def check_depth(folder: Path, source: Path, keys: list[str], far: float = 10.0) -> None:
    """Every frame as LeRobot reads it: all else as in ``source``, depth to half a step."""
    before, after = read(source), read(folder)
    info = after.meta.features[f"{keys[0]}_depth"]["info"]
    metres = levels(depth_encoder(info["video.depth_max"]))
    steps = np.diff(metres)
    assert len(before) == len(after)
    for at in range(len(before)):
        row, found = before[at], after[at]
        for key, value in row.items():
            same = torch.equal(value, found[key]) if torch.is_tensor(value) else value == found[key]
            assert same, (at, key)
        assert set(found) - set(row) == {f"{key}_depth" for key in keys}
        for key in keys:
            red_HW = np.rint(row[key][0].numpy() * 255).astype(np.float32)
            said_HW = Teacher().depth(red_HW)
            read_HW = found[f"{key}_depth"][0].numpy()
            known_HW = np.isfinite(said_HW) & (said_HW <= far)
            assert (read_HW[~known_HW] < metres[:2].mean()).all()
            said, got = said_HW[known_HW], read_HW[known_HW]
            step = steps[np.searchsorted(metres, said).clip(1, len(steps) - 1)]
            assert (np.abs(said - got) <= 0.505 * step).all()

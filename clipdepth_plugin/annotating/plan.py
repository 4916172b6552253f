"""Plan: a data set opened and checked against a job, before anything is written."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdepth_plugin.annotating.lenses import Lenses
from clipdepth_plugin.annotating.settings import AnnotateJob
from clipdepth_plugin.errors import DataError, quoted
from clipdepth_plugin.files.paths import is_folder
from clipdepth_plugin.labelling.lerobot import LeRobotFrames, lerobot_module, short_name
from clipdepth_plugin.labelling.versions import files_version

SUFFIX = "_depth"
"""Of the key of a camera's depth."""

_MORE = 1 << 26  # beside the copied files


@dataclass(frozen=True)
class Plan:
    """What a job comes to.

    Attributes:
        job: The job.
        frames: Its data set.
        cameras: Keys of the cameras that get depth.
        lenses: Says their cameras.
    """

    job: AnnotateJob
    frames: LeRobotFrames
    cameras: tuple[str, ...]
    lenses: Lenses

    @property
    def root(self) -> Path:
        """The folder of the data set."""
        return Path(self.frames.meta.root)

    @property
    def depth_keys(self) -> dict[str, str]:
        """Camera key -> key of its depth."""
        return {camera: f"{camera}{SUFFIX}" for camera in self.cameras}

    def part(self, episode: int) -> Path:
        """The folder of an episode that is done."""
        return self.job.parts / f"episode-{episode:06d}"

    def missing(self) -> list[int]:
        """The episodes that are not done."""
        return [one for one in range(len(self.frames.episodes)) if not self.part(one).is_dir()]

    def length(self, episode: int) -> int:
        """Number of frames of an episode."""
        first, end = self.frames.episodes[episode]
        return end - first

    def set_version(self) -> str:
        """A hash of what describes the data set."""
        meta = self.root / "meta"
        files = [meta / "info.json", *(meta / "episodes").rglob("*.parquet")]
        return files_version(files)


def make_plan(job: AnnotateJob) -> Plan:
    """Opens the data set of a job.

    Raises:
        DataError: It is none of LeRobot's version 3, has no such camera or depth of it already, or
            the new one would lie in it.
    """
    lerobot_module("datasets.lerobot_dataset", job.dataset)
    if not hasattr(lerobot_module("configs", job.dataset), "DepthEncoderConfig"):
        raise DataError(f"{job.dataset}: depth streams need lerobot 0.6 or later")
    frames = LeRobotFrames(job.dataset)
    if not frames.episodes:
        raise DataError(f"{job.dataset}: has no episode")
    cameras = _chosen(job.cameras, frames)
    root, folder = Path(frames.meta.root).resolve(), job.folder.resolve()
    if folder == root or root in folder.parents or folder in root.parents:
        raise DataError(f"{job.folder}: lies in the data set {root}, or around it; give another")
    lenses = Lenses(job.settings, frames.cameras, len(frames.episodes))
    return Plan(job, frames, cameras, lenses)


def check_room(plan: Plan) -> None:
    """Whether the disk has room for a copy of the data set.

    Raises:
        DataError: It has not.
    """
    needed = _MORE + sum(path.stat().st_size for path in plan.root.rglob("*") if path.is_file())
    place = next(one for one in plan.job.parts.parents if is_folder(one))
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DataError(
            f"{plan.job.folder}: the disk has {free >> 20} MiB free, and a copy of the data set "
            f"alone takes {needed >> 20} MiB; give a folder on another disk"
        )


def _chosen(names: Sequence[str], frames: LeRobotFrames) -> tuple[str, ...]:
    by_name = {name: key for key in frames.cameras for name in (key, short_name(key))}
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(name[:100], by_name, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise DataError(
                f"{frames.place}: has no camera {quoted(name)}; {hint}cameras are "
                f"{', '.join(map(short_name, frames.cameras))}"
            )
    wanted = {by_name[name] for name in names} or set(frames.cameras)
    cameras = tuple(key for key in frames.cameras if key in wanted)
    features: dict[str, Any] = frames.meta.features
    there = [camera for camera in cameras if f"{camera}{SUFFIX}" in features]
    if there:
        others = [short_name(one) for one in cameras if one not in there]
        more = f"; the others: {' '.join(f'--camera {one}' for one in others)}" if others else ""
        raise DataError(
            f"{frames.place}: has {', '.join(f'{one}{SUFFIX}' for one in there)} already; depth "
            f"that is there is not replaced: name the cameras that get depth{more}"
        )
    return cameras

"""What ``clipdepth predict`` is given: pictures, folders of them, videos, and globs of either."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipdepth_plugin.errors import ImageError, printable
from clipdepth_plugin.files.paths import is_folder
from clipdepth_plugin.files.pictures import OUR_SUFFIXES, SUFFIXES, find_images
from clipdepth_plugin.files.videos import is_video

OUR_VIDEO_SUFFIX = ".colour.mp4"
"""Ending of the videos that ``clipdepth predict`` writes."""


class Inputs(NamedTuple):
    """Pictures and videos, each in the order in which they were named."""

    images: list[Path]
    videos: list[Path]


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """Lists them; ``find_images`` says what a folder gives.

    Raises:
        ImageError: A path is not there, a folder or a glob holds nothing, or nothing was named.
    """
    named = [one for path in paths for one in _matches(path)]
    videos = list(dict.fromkeys(path for path in named if is_video(str(path))))
    rest = [path for path in named if not is_video(str(path))]
    return Inputs(find_images(rest) if rest or not videos else [], videos)


def _matches(path: Path) -> list[Path]:
    """The files of a glob (where the shell left it), or the path itself."""
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    found = [Path(one) for one in sorted(glob.iglob(str(path), recursive=True))]  # noqa: PTH207
    wanted = [one for one in found if _is_wanted(one.name) and not is_folder(one)]
    if not wanted:
        raise ImageError(
            f"{printable(path)}: matches no picture and no video ({len(found)} other entries)"
        )
    return wanted


def _is_wanted(name: str) -> bool:
    lower = name.lower()
    ours = lower.endswith((*OUR_SUFFIXES, OUR_VIDEO_SUFFIX))
    return not ours and (lower.endswith(SUFFIXES) or is_video(name))

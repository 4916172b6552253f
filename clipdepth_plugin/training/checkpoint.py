"""Checkpoints on disk: safetensors and JSON in a folder for each, whole or not there at all.

checkpoints/step-00000400/manifest.json     size and sha256 of the other files
                          state.json        position in the data, optimiser groups, best so far
                          model.safetensors, ema.safetensors, optimiser.safetensors,
                          rng.safetensors
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import new_folder, remove_leftovers

logger = logging.getLogger(__name__)

PARTS = ("model", "ema", "optimiser", "rng")
MANIFEST = "manifest.json"
STATE = "state.json"
CORRUPT = "corrupt-"

_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        step: Optimiser steps done.
        tensors: Part (one of ``PARTS``) -> name -> tensor, on the CPU.
        state: What JSON holds.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run, newest last.

    Attributes:
        folder: Where they are.
        keep: How many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints' folders, by step."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes the oldest beyond ``keep``.

        Returns:
            Its folder.

        Raises:
            TrainingError: It can't be written; those that are there stay.
        """
        contents = {
            f"{part}.safetensors": safetensors.torch.save(
                {name: x.contiguous() for name, x in checkpoint.tensors[part].items()}
            )
            for part in PARTS
        }
        state = {"step": checkpoint.step, **checkpoint.state}
        contents[STATE] = json.dumps(state, indent=1, allow_nan=False).encode()
        files = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        }
        manifest = {"format": _FORMAT, "files": files}
        contents[MANIFEST] = json.dumps(manifest, indent=1).encode()
        path = self.folder / f"step-{checkpoint.step:08d}"
        with new_folder(path, TrainingError) as temporary:
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; None where there is none at all.

        A damaged one is reported by name and set aside (``corrupt-`` before its name).

        Raises:
            TrainingError: There are checkpoints, and all are damaged.
        """
        remove_leftovers(self.folder)
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                _verify(path)
            except TrainingError as error:
                damaged.append(path.name)
                logger.error("%s; it is set aside and the one before is used", error)
                self._set_aside(path)
            else:
                return path
        if damaged:
            raise TrainingError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(damaged)}); restore one "
                "from a backup, or start a new run in another folder"
            )
        return None

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{CORRUPT}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint that ``Checkpoints.newest`` found whole.

    Raises:
        TrainingError: It can't be read.
    """
    _verify(path)
    try:
        tensors = {
            part: safetensors.torch.load_file(path / f"{part}.safetensors") for part in PARTS
        }
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"checkpoint {path}: can't be read ({error})") from error
    return Checkpoint(int(state["step"]), tensors, state)


def _verify(path: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        TrainingError: Says which file is missing or other than it was written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {path}: {MANIFEST} is missing or damaged") from error
    if version != _FORMAT:
        raise TrainingError(f"checkpoint {path}: format {version}, this release reads {_FORMAT}")
    for name in (*(f"{part}.safetensors" for part in PARTS), STATE):
        file = path / name
        if name not in files or not file.is_file():
            raise TrainingError(f"checkpoint {path}: {name} is missing")
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != files[name]["sha256"]:
            raise TrainingError(
                f"checkpoint {path}: {name} is damaged ({file.stat().st_size} bytes, "
                f"{files[name]['bytes']} were written)"
            )

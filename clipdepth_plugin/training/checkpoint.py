"""Checkpoints: one safetensors file for each, whole or not there at all.

checkpoints/step-00000400.safetensors    tensors ``<part>/<name>``; in its metadata, as JSON, the
                                         position in the data and the best weights so far, and the
                                         sha256 of all of it
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import remove_leftovers, write_atomically

logger = logging.getLogger(__name__)

PARTS = ("model", "ema", "optimiser", "rng")
CORRUPT = "corrupt-"

_FORMAT = 3


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue: tensors by part (``PARTS``) and name, and JSON."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Checkpoints:
    """The newest ``keep`` checkpoints of a run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, by step."""
        found = self.folder.glob("step-*.safetensors")
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes the oldest beyond ``keep``."""
        tensors = {
            f"{part}/{name}": x.contiguous()
            for part in PARTS
            for name, x in checkpoint.tensors[part].items()
        }
        state = {"format": _FORMAT, "step": checkpoint.step, **checkpoint.state}
        text = json.dumps(state, allow_nan=False)
        metadata = {"state": text, "sha256": _sha256(tensors, text)}
        content = safetensors.torch.save(tensors, metadata)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{checkpoint.step:08d}.safetensors"
        write_atomically(path, content, TrainingError)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read; None where there is none at all.

        A damaged one is logged and renamed (prefix ``corrupt-``).
        """
        remove_leftovers(self.folder)
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                read_checkpoint(path)
            except TrainingError as error:
                damaged.append(path.name)
                logger.error("%s; it is set aside, and the one before it is used", error)
                path.replace(path.with_name(f"{CORRUPT}{path.name}"))
            else:
                return path
        if damaged:
            raise TrainingError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(damaged)}); restore one "
                "from a backup, or start a new run in another folder"
            )
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint."""
    tensors: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = json.loads(metadata["state"])
        step, version = int(state["step"]), state["format"]
        if version == _FORMAT and metadata["sha256"] != _sha256(flat, metadata["state"]):
            raise ValueError("its content does not have the sha256 that was written with it")
        for key, x in flat.items():
            part, _, name = key.partition("/")
            tensors[part][name] = x
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"checkpoint {path}: damaged ({error})") from error
    if version != _FORMAT:
        raise TrainingError(f"checkpoint {path}: format {version}, this release reads {_FORMAT}")
    return Checkpoint(step, tensors, state)


def _sha256(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

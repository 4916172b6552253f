"""Checkpoints: one sealed safetensors file for each, whole or not there at all.

checkpoints/step-00000400.safetensors    tensors ``<part>/<name>``; its text is the ``State``
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import remove_leftovers, write_atomically
from clipdepth_plugin.files.problems import described
from clipdepth_plugin.training.sealed import DamagedFileError, open_sealed, seal
from clipdepth_plugin.training.validation import Best

logger = logging.getLogger(__name__)

PARTS = ("model", "ema", "optimiser", "rng", "best")
"""``best`` is the best head so far; empty before the first validation."""
CORRUPT = "corrupt-"

_FORMAT = 5

Count = Annotated[int, Field(ge=0, le=2**53)]


class State(BaseModel):
    """What a checkpoint holds beside tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: int = _FORMAT
    step: Count
    """Optimiser steps that are done."""
    epoch: Count
    batch: Count
    """The next batch of the epoch."""
    best: Best = Best()
    scaler: dict[str, Any] | None = None
    """Of fp16."""
    processes: Annotated[int, Field(ge=1)] = 1
    torch: str = ""
    """The version that wrote it."""
    config: str = ""
    """Hash of the fields of the run's config that may not change."""
    samples: dict[str, list[Count]] = {}
    """Of each set of ``train`` and ``validation``; none of streams, which have no length."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue: tensors by part (``PARTS``) and name, and the state."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: State


class Checkpoints:
    """The newest ``keep`` checkpoints of a run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, by step."""
        return [path for _, path in sorted(self._steps().items())]

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes the oldest beyond ``keep``."""
        tensors = {
            f"{part}/{name}": x.contiguous()
            for part in PARTS
            for name, x in checkpoint.tensors[part].items()
        }
        content = seal(tensors, checkpoint.state.model_dump(mode="json"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.folder}: can't be made ({error.strerror})") from error
        path = self.folder / f"step-{checkpoint.state.step:08d}.safetensors"
        write_atomically(path, content, TrainingError)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint that is not damaged; None where there never was one.

        Newer ones that are damaged are logged and renamed (prefix ``corrupt-``).

        Raises:
            TrainingError: All are damaged, or one can't be read or is of another format.
        """
        remove_leftovers(self.folder)
        damaged: dict[Path, str] = {}
        aside = sorted(path.name for path in self.folder.glob(f"{CORRUPT}*"))
        for path in reversed(self.paths()):
            try:
                read_checkpoint(path)
            except DamagedFileError as error:
                damaged[path] = str(error)
            else:
                for one, why in damaged.items():
                    logger.error("%s; it is set aside, and %s is used", why, path.name)
                    one.replace(one.with_name(f"{CORRUPT}{one.name}"))
                if aside:
                    logger.warning("%s: set aside as damaged: %s", self.folder, ", ".join(aside))
                return path
        if names := [*(path.name for path in damaged), *aside]:
            why = "".join(f"\n  {one}" for one in damaged.values())
            raise TrainingError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(names)}); restore one "
                f"from a backup, or start a new run in another folder{why}"
            )
        return None

    def _steps(self) -> dict[int, Path]:
        found = ((path, _NAME.fullmatch(path.name)) for path in self.folder.glob("step-*"))
        return {int(name[1]): path for path, name in found if name is not None}


_NAME = re.compile(r"step-([0-9]{8,16})\.safetensors")


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        DamagedFileError: It is not what was written.
        TrainingError: It can't be read, or another release wrote it.
    """
    sealed = open_sealed(path)
    value = sealed.json()
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version != _FORMAT:
        raise TrainingError(
            f"{path}: a checkpoint of format {version}, this release reads {_FORMAT}; go on with "
            "the release that wrote it"
        )
    sealed.check()
    try:
        state = State.model_validate_json(sealed.text)
    except ValidationError as error:
        raise DamagedFileError(f"{path}: damaged: {described(error, State)}") from error
    name = _NAME.fullmatch(path.name)
    if name is not None and int(name[1]) != state.step:
        raise DamagedFileError(f"{path}: damaged (it is of step {state.step}, not of its name's)")
    tensors: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, x in sealed.tensors.items():
        part, _, rest = key.partition("/")
        if part not in tensors:
            raise DamagedFileError(f"{path}: damaged (a tensor {key!r})")
        tensors[part][rest] = x
    return Checkpoint(tensors, state)

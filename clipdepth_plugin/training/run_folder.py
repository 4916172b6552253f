"""A run's folder: config, log, TensorBoard, pictures, checkpoints and the best head.

config.yaml            the merged config
log.jsonl              one line for each logged step and validation
tensorboard/           the same for TensorBoard
pictures/step-*.png    RGB, truth, prediction, error
checkpoints/step-*     to resume from
head/                  the best head so far, as ``DepthHead.from_pretrained`` takes it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.pictures import opened_image
from clipdepth_plugin.training.checkpoint import Checkpoints
from clipdepth_plugin.training.config_file import dump_config, load_config

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from clipdepth_plugin.training.config import TrainConfig

# Fields that may differ when a run is resumed, as they change no result.
_FREE = ("run", "workers", "checkpoint_every", "keep", "bad_file_limit", "logging", "provenance")


class RunFolder:
    """The files of one run; only the main process writes them."""

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.run)
        self.head = self.path / "head"
        self.log = self.path / "log.jsonl"
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.keep)
        self._config = config
        self._board: SummaryWriter | None = None

    def check(self, *, resume: bool) -> None:
        """Checks that the folder is free, or holds this run to be resumed; nothing is written."""
        stored = self.path / "config.yaml"
        if not stored.is_file():
            return
        if not resume:
            raise TrainingError(
                f"{self.path} holds a run already: continue it (--resume), or choose another "
                "folder (--run)"
            )
        before = load_config(stored).model_dump(mode="json", exclude=set(_FREE))
        now = self._config.model_dump(mode="json", exclude=set(_FREE))
        other = sorted(name for name in now if now[name] != before[name])
        if other:
            raise TrainingError(
                f"{self.path}: this run was started with another {', '.join(other)} "
                f"(see {stored}); resume it as it was, or start a new one (--run)"
            )

    def open(self, step: int) -> None:
        """Prepares the folder and the log to continue after ``step``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.path}: can't be made ({error.strerror})") from error
        write_atomically(
            self.path / "config.yaml", dump_config(self._config).encode(), TrainingError
        )
        kept = [line for line in read_log(self.log) if line["step"] <= step]
        write_atomically(self.log, b"".join(_line(record) for record in kept), TrainingError)
        if self._config.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line to the log: ``step``, ``kind`` and numbers."""
        try:
            with self.log.open("ab") as file:
                file.write(_line(record))
        except OSError as error:
            raise TrainingError(
                f"{self.log}: can't be written ({error.strerror}); make room and continue with "
                "--resume"
            ) from error
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def write_pictures(self, step: int, png: bytes) -> None:
        """Adds an image grid, a PNG file's content, to the folder and to TensorBoard."""
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{step:08d}.png", png, TrainingError)
        if self._board is not None:
            with opened_image(png) as grid:
                grid_HWC = np.asarray(grid.convert("RGB"))
            self._board.add_image("validation", grid_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Closes what is open."""
        if self._board is not None:
            self._board.close()
            self._board = None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; without the last, where a killed process left half of it."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"

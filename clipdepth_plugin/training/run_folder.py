"""A run's folder: config, log, TensorBoard, pictures, checkpoints and the best head.

config.yaml            the merged config
log.jsonl              one line for each logged step and validation
tensorboard/           the same for TensorBoard
pictures/step-*.png    RGB, truth, prediction, error
checkpoints/step-*     to resume from
head/                  the best head so far, as ``DepthHead.from_pretrained`` takes it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files.atomic import remove_leftovers, write_atomically
from clipdepth_plugin.files.documents import parse_json
from clipdepth_plugin.files.locks import locked_folder
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

    @property
    def fingerprint(self) -> str:
        """Hash of the fields that may not change while the run is resumed."""
        return hashlib.sha256(json.dumps(_bound(self._config), sort_keys=True).encode()).hexdigest()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process trains in this folder.

        Raises:
            TrainingError: One does, or the folder can't be made.
        """
        with locked_folder(self.path, TrainingError, "run folder"):
            for one in (self.path, self.head, self.checkpoints.folder, self.path / "pictures"):
                remove_leftovers(one)
            yield

    def check(self, *, resume: bool) -> None:
        """Checks that the folder is free, or holds this run to be resumed; nothing is written."""
        stored = self.path / "config.yaml"
        parts = (stored, self.log, self.head, self.checkpoints.folder)
        there = [path.name for path in parts if _holds(path)]
        if not there:
            return
        if not resume:
            raise TrainingError(
                f"{self.path} holds a run already ({', '.join(there)}): continue it (--resume), or "
                "choose another folder (--run)"
            )
        if stored.name not in there:
            raise TrainingError(
                f"{self.path} holds {', '.join(there)}, but no {stored.name} of the run that it is "
                "of: put it back, or start a new run in another folder (--run)"
            )
        before, now = _bound(load_config(stored)), _bound(self._config)
        other = sorted(name for name in now if now[name] != before[name])
        if other:
            raise TrainingError(
                f"{self.path}: this run was started with another {', '.join(other)} "
                f"(see {stored}); resume it as it was, or start a new one (--run)"
            )
        read_log(self.log)  # raises where it is damaged

    def newest(self) -> Path | None:
        """The checkpoint to resume from; None where none was due before the run ended.

        Raises:
            TrainingError: There was one, and it is lost or damaged.
        """
        path = self.checkpoints.newest()
        if path is not None:
            return path
        log = read_log(self.log)
        last = max((record["step"] for record in log), default=0)
        every = load_config(self.path / "config.yaml").checkpoint_every if log else 0
        if last > every or (_holds(self.head) and not log):
            made = f"{self.log.name} has {last} steps" if log else f"{self.head.name}/ is there"
            raise TrainingError(
                f"{self.path}: {made}, but {self.checkpoints.folder} has no checkpoint; restore "
                "one from a backup, or start a new run in another folder (--run)"
            )
        return None

    def open(self, step: int) -> None:
        """Prepares the folder and the log to continue after ``step``."""
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
    """The lines of a run's log; without the last, where a killed process left half of it.

    Raises:
        TrainingError: It can't be read, or another line is no record.
    """
    if not path.exists():
        return []
    records = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TrainingError(f"{path}: can't be read ({error.strerror or error})") from error
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line, f"{path}, line {number}", TrainingError)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise TrainingError(f"{path}, line {number}: not the record of a step")
        except TrainingError as error:
            if number == len(lines):
                break
            raise TrainingError(f"{error}; take this line out") from error
        records.append(record)
    return records


def _holds(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _bound(config: TrainConfig) -> dict[str, Any]:
    """The fields that may not change."""
    return config.model_dump(mode="json", exclude=set(_FREE))


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"

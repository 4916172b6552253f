"""No work is lost: runs that were interrupted, killed, or ran out of disk go on as they were."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.checkpoint import PARTS, Checkpoint, Checkpoints, read_checkpoint
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log
from clipdepth_plugin.training.run_recorder import RunRecorder
from tests.training.conftest import write_plane
from tests.training.labelled import copied

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_killed.py"

# Of 21: config, log and three checkpoints are 3 calls to the disk each, the best head is 6.
KILLED_AT_CALLS = (2, 5, 8, 12, 14, 17, 20)


class InterruptedRunError(Exception):
    """Stands for whatever ends a process."""


def train_until(step: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunRecorder.log_step

    def write_and_stop(self: RunRecorder, at: int, *rest: Any) -> None:
        write(self, at, *rest)
        if at == step:
            raise InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "log_step", write_and_stop)
        with pytest.raises(InterruptedRunError):
            train(config)


def same_weights(one: Path, other: Path) -> bool:
    here, there = (load_file(path / "head" / "model.safetensors") for path in (one, other))
    return here.keys() == there.keys() and all(torch.equal(x, there[k]) for k, x in here.items())


def last_checkpoint(run: Path, part: str) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").iterdir())
    return dict(read_checkpoint(newest).tensors[part])


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 10, "checkpoint_every": 4},  # 3 batches an epoch: in the middle of one
        {"steps": 6, "gradient_accumulation": 2, "batch_size": 4, "checkpoint_every": 2},
        {"steps": 6, "ema": None, "workers": 1},
    ],
    ids=["dropout and batch norm", "accumulation", "no average, a worker"],
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    train(tiny.config("whole", **changes))
    train_until(5, tiny.config("parts", **changes), monkeypatch)
    torch.manual_seed(999)  # nothing may hang on the global random state
    train(tiny.config("parts", **changes), resume=True)
    assert tiny.losses("parts") == tiny.losses("whole")
    assert same_weights(tiny.folder / "parts", tiny.folder / "whole")
    for part in PARTS:
        one, other = (last_checkpoint(tiny.folder / run, part) for run in ("parts", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(x, other[name]) for name, x in one.items()), part


def test_a_run_killed_at_any_call_to_the_disk_goes_on_to_the_same_losses(tiny: TinyRuns) -> None:
    tree = tiny.tree("killed", validate_every=3)
    fields = tiny.folder / "fields.json"
    fields.write_text(json.dumps(tree))
    calls = [str(call) for call in KILLED_AT_CALLS]
    done = subprocess.run(
        [sys.executable, SCRIPT, fields, *calls], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [word for call in calls for word in (call, "-9", "0")], done
    train(tiny.config("whole", validate_every=3))
    for call in calls:
        name = f"killed-{call}"
        assert tiny.losses(name) == tiny.losses("whole"), call
        assert same_weights(tiny.folder / name, tiny.folder / "whole"), call
        assert not list((tiny.folder / name).rglob(".*")), call  # neither a lock nor half a file


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tiny: TinyRuns, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny.config("whole"))
    checkpoints = tiny.folder / "whole" / "checkpoints"
    newest = checkpoints / "step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    losses, head = tiny.losses("whole"), tiny.folder / "whole" / "head" / "model.safetensors"
    weights = load_file(head)
    with caplog.at_level(logging.ERROR):
        train(tiny.config("whole"), resume=True)
    assert "step-00000006.safetensors: damaged" in caplog.text
    assert tiny.losses("whole") == losses
    again = load_file(head)
    assert all(torch.equal(x, again[name]) for name, x in weights.items())
    assert newest.is_file()
    assert (checkpoints / f"corrupt-{newest.name}").is_file()


def test_a_full_disk_stops_the_run_and_what_was_saved_is_gone_on_from(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny.config("whole"))
    save, room = Checkpoints.save, [2]  # checkpoints that still fit

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_while_there_is_room(self: Checkpoints, checkpoint: Checkpoint) -> Path:
        room[0] -= 1
        if room[0] < 0:
            patch.setattr(os, "fsync", full)
        return save(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_while_there_is_room)
        with pytest.raises(TrainingError, match=r"step-0000000\d.*No space left"):
            train(tiny.config("full"))
    assert list((tiny.folder / "full" / "checkpoints").iterdir())
    train(tiny.config("full"), resume=True)
    assert tiny.losses("full") == tiny.losses("whole")


def test_resuming_before_the_first_checkpoint_starts_again(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(1, tiny.config("run"), monkeypatch)
    result = train(tiny.config("run"), resume=True)
    assert result.steps == 6
    assert list(tiny.losses("run")) == [1, 2, 3, 4, 5, 6]


def test_a_set_that_grew_is_no_more_the_runs(tiny: TinyRuns) -> None:
    """The order of its samples, the run's length and its learning rate would be other ones."""
    data = copied(tiny.data, tiny.folder / "planes")
    tiny = replace(tiny, data=str(data))
    train(tiny.config("run"))
    began = last_checkpoint(tiny.folder / "run", "model")
    write_plane(data / "train" / "more" / "0", seed=99)
    with pytest.raises(TrainingError, match=r"data.train: the sets have 8 samples.* with 7; put"):
        train(tiny.config("run"), resume=True)
    after = last_checkpoint(tiny.folder / "run", "model")
    assert all(torch.equal(x, after[name]) for name, x in began.items())


def test_resuming_a_finished_run_changes_nothing(tiny: TinyRuns) -> None:
    result = train(tiny.config("run"))
    log = (tiny.folder / "run" / "log.jsonl").read_bytes()
    again = train(tiny.config("run"), resume=True)
    assert again == result
    assert (tiny.folder / "run" / "log.jsonl").read_bytes() == log


def test_what_changes_no_number_may_change_on_resume(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(3, tiny.config("run"), monkeypatch)
    free = {"keep": 1, "checkpoint_every": 1, "provenance": {"license": "MIT"}}
    train(tiny.config("run", **free), resume=True)
    kept = list((tiny.folder / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000006.safetensors"]


def test_a_config_made_in_python_is_the_one_that_was_stored(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tuples come back from YAML as lists."""
    config = tiny.config("run", head={"options": {**tiny.head, "channels": (8, 4)}})
    train_until(3, config, monkeypatch)
    assert train(config, resume=True).steps == 6


def test_half_a_line_in_the_log_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_log(log) == [{"step": 1}]
    assert read_log(tmp_path / "none") == []

"""Two processes are one with the doubled batch: ``accelerate launch``, gloo, on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log
from clipdepth_plugin.training.session import make_accelerator

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_runs.py"
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]


def launch(runs: list[tuple[dict[str, Any], bool]], file: Path) -> None:
    """Trains in two processes; ``--multi_gpu`` starts them, and they find no GPU to use."""
    file.write_text(json.dumps(runs))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, SCRIPT, file], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(tiny: TinyRuns) -> None:
    common: dict[str, Any] = {
        "head": {"options": tiny.exact_head},
        "loss": {"gradient": 0.5},
        "steps": 8,
        "validate_every": 3,
        "checkpoint_every": 3,
    }
    cache = {"folder": str(tiny.folder / "cache"), "dtype": "float32"}
    resumed = tiny.folder / "resumed"
    for name, changes in (("one", {}), ("one-cached", {"cache": cache})):
        train(tiny.config(name, **common, **changes))
    # One more run begins with what three steps of one process left, and goes on in two.
    shutil.copytree(tiny.folder / "one", resumed)
    for step in (6, 8):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(cache["folder"])
    launch(
        [
            (tiny.tree("two", **common), False),
            (tiny.tree("two-cached", **common, cache=cache), False),
            (tiny.tree("resumed", **common), True),
            # Batch norm's buffers are sent around, with three pictures for two processes.
            (tiny.tree("normed", head={"options": tiny.head}, validate_every=3), False),
        ],
        tiny.folder / "runs.json",
    )
    for name, other in (("two", "one"), ("two-cached", "one-cached"), ("resumed", "one")):
        assert tiny.losses(name) == pytest.approx(tiny.losses(other), abs=1e-4)
        for record, expected in zip(*map(measured, (tiny, tiny), (name, other)), strict=True):
            assert record["images"] == 3
            assert record["abs_rel"] == pytest.approx(expected["abs_rel"], abs=1e-4)
    assert len(tiny.losses("normed")) == 6


def measured(tiny: TinyRuns, name: str) -> list[dict[str, Any]]:
    records = read_log(tiny.folder / name / "log.jsonl")
    return [one for one in records if one["kind"] == "validation_raw"]


def test_a_batch_that_does_not_split_over_the_processes_is_refused(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(TrainingError, match=r"batch_size: 4 .*can't be split over 3 processes"):
        make_accelerator(tiny.config("run", batch_size=4))

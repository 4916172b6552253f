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
import torch

from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.accelerator import make_accelerator
from clipdepth_plugin.training.checkpoint import read_checkpoint
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_runs.py"
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]
GUIDED: dict[str, Any] = {
    "head": {
        "preset": "guided",
        "options": {
            "channels": [8, 8, 8],
            "film_hidden": 8,
            "stem_channels": 4,
            "confidence": True,
        },
    },
    "loss": {"auxiliary": [], "confidence": 0.1},
}


def launch(
    runs: list[tuple[dict[str, Any], bool]],
    file: Path,
    *,
    processes: int = 2,
    fsdp_version: int | None = None,
) -> str:
    """Trains in two processes; ``--multi_gpu`` starts them, and they find no GPU to use.

    One process is started without the launcher.

    Returns:
        What they said; their exit status is in front where it is not 0.
    """
    file.write_text(json.dumps(runs))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command: list[str | Path] = [*(LAUNCH if processes > 1 else LAUNCH[:1]), SCRIPT, file]
    if fsdp_version is not None:
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": str(fsdp_version)}
        command.append("sharded")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    failed = f"exit status {done.returncode}\n" if done.returncode else ""
    return failed + done.stdout + done.stderr


def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(tiny: TinyRuns) -> None:
    train_set, test_set = (tiny.tree("any")["data"][name][0] for name in ("train", "validation"))
    free = {**train_set, "name": "free", "scale_share": 0.3, "limit": 3}
    common: dict[str, Any] = {
        "data": {
            "train": [{**train_set, "share": 4}, {**free, "share": 5}],
            "validation": [test_set, {**train_set, "name": "more", "limit": 2}],
        },
        "head": {"options": tiny.exact_head},
        "loss": {"gradient": 0.5},
        # A rotation gives neighbours the same depth; where the prediction is flat, too, the sign of
        # their difference, which is gradient matching's own gradient, is rounding.
        "augment": {"rotation_degrees": 0.0},
        "steps": 8,
        "validate_every": 3,
        "checkpoint_every": 3,
    }
    cache = {"folder": str(tiny.folder / "cache"), "dtype": "float32"}
    resumed = tiny.folder / "resumed"
    for name, changes in (
        ("one", {}),
        ("one-cached", {"cache": cache}),
        ("one-guided", GUIDED),
    ):
        train(tiny.config(name, **common | changes))
    # One more run resumes in two processes after three steps in one.
    shutil.copytree(tiny.folder / "one", resumed)
    for step in (6, 8):
        (resumed / "checkpoints" / f"step-{step:08d}.safetensors").unlink()
    shutil.rmtree(cache["folder"])
    said = launch(
        [
            (tiny.tree("two", **common), False),
            (tiny.tree("two-cached", **common, cache=cache), False),
            (tiny.tree("resumed", **common), True),
            # Its level norms begin with the statistics of both processes' pictures.
            (tiny.tree("two-guided", **common | GUIDED), False),
            # Batch norm's buffers are sent around, with three pictures for two processes.
            (tiny.tree("normed", head={"options": tiny.head}, validate_every=3), False),
        ],
        tiny.folder / "runs.json",
    )
    assert not said.startswith("exit status"), said
    for name, other in (
        ("two", "one"),
        ("two-cached", "one-cached"),
        ("two-guided", "one-guided"),
        ("resumed", "one"),
    ):
        # Sums over batches of other sizes round differently, which steps of 1e-2 amplify.
        assert tiny.losses(name) == pytest.approx(tiny.losses(other), rel=1e-3)
        for record, expected in zip(*map(measured, (tiny, tiny), (name, other)), strict=True):
            assert record["images"] == 5
            for metric in ("abs_rel", "abs_rel/planes", "abs_rel_aligned/more"):
                assert record[metric] == pytest.approx(expected[metric], rel=1e-3)
            for metric in ("confidence_scale", "calibration_error", "calibration_error/more"):
                assert (metric in record) == ("guided" in name)
                assert record.get(metric, 0) == pytest.approx(expected.get(metric, 0), rel=1e-2)
    assert len(tiny.losses("normed")) == 6


def test_sharded_over_two_processes_it_has_the_loss_curve_and_the_weights_of_one(
    tiny: TinyRuns,
) -> None:
    common: dict[str, Any] = {
        "head": {"options": tiny.exact_head},
        "steps": 6,
        "validate_every": 2,
        "checkpoint_every": 3,
    }
    train(tiny.config("one", **common))
    resumed = tiny.folder / "resumed"
    shutil.copytree(tiny.folder / "one", resumed)
    (resumed / "checkpoints" / "step-00000006.safetensors").unlink()
    runs = [(tiny.tree("two", **common), False), (tiny.tree("resumed", **common), True)]
    train(tiny.config("one-guided", **common | GUIDED))
    runs.append((tiny.tree("two-guided", **common | GUIDED), False))
    said = launch(runs, tiny.folder / "runs.json", fsdp_version=2)
    assert not said.startswith("exit status"), said
    assert tiny.losses("two-guided") == pytest.approx(tiny.losses("one-guided"), abs=1e-4)
    for name in ("two", "resumed"):
        assert tiny.losses(name) == pytest.approx(tiny.losses("one"), abs=1e-4)
        for record, expected in zip(*map(measured, (tiny, tiny), (name, "one")), strict=True):
            assert record["abs_rel"] == pytest.approx(expected["abs_rel"], abs=1e-4)
        file = Path("checkpoints", "step-00000006.safetensors")
        both = [read_checkpoint(tiny.folder / run / file).tensors for run in ("one", name)]
        for part in ("model", "ema", "optimiser"):
            whole, gathered = both[0][part], both[1][part]
            assert gathered.keys() == whole.keys()
            for key, x in whole.items():
                torch.testing.assert_close(gathered[key], x, atol=1e-3, rtol=1e-3)


def test_fsdp_1_is_refused(tiny: TinyRuns) -> None:
    runs = [(tiny.tree("run"), False)]
    said = launch(runs, tiny.folder / "runs.json", processes=1, fsdp_version=1)
    assert said.startswith("exit status")
    assert "--fsdp_version 2" in said
    assert not (tiny.folder / "run").exists()


def measured(tiny: TinyRuns, name: str) -> list[dict[str, Any]]:
    records = read_log(tiny.folder / name / "log.jsonl")
    return [one for one in records if one["kind"] == "validation_raw"]


def test_a_batch_that_does_not_split_over_the_processes_is_refused(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(TrainingError, match=r"batch_size: 4 .*can't be split over 3 processes"):
        make_accelerator(tiny.config("run", batch_size=4))

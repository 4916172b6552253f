"""Trains and measures the heads of the ladder: one run file for each head, data set and seed.

    python results/ladder.py train                  # every run that has no file yet
    python results/ladder.py train --head fast --data libero --seeds 1
    python results/ladder.py train --config configs/ladder_full.yaml --seeds 5 --column steps  # GPU

``--column steps`` trains each head for the config's steps. ``--column time`` gives each the CPU
time that the published head (middle levels) took for those, by as many steps as fit in it. Both are
run where none is named, the published heads once, as their time is the measure.

CLIPDEPTH_DATA is the folder of RGB-D sets. Same tokens (the frozen tower runs once, its output is
kept), data, order, augmentation and batch for all; the learning rate, and what the loss has beside
SILog, are each head's own (clipdepth_plugin/evaluation/ladder.py). The last weights are measured,
on each picture at its own size, raw scale, no mirrored average. Then ``python
results/ladder_table.py`` makes the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from clipdepth_plugin import DepthHead, DepthPlugin, HeadConfig
from clipdepth_plugin.circumstances import describe_circumstances
from clipdepth_plugin.evaluation.evaluate import iterate
from clipdepth_plugin.evaluation.ladder import RUNGS, VARIANTS
from clipdepth_plugin.evaluation.metrics import image_metrics, mean_metrics
from clipdepth_plugin.evaluation.predictors import HeadPredictor, predict_samples
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import load_config
from clipdepth_plugin.training.data import DataConfig, open_dataset
from clipdepth_plugin.training.progress import Silent
from clipdepth_plugin.training.schedule import learning_rate
from clipdepth_plugin.training.session import Session, open_session

HERE = Path(__file__).resolve().parent
SETS = ("libero", "kitchen")
MEASURE_OF_TIME = "spaceclip-middle"
EVALUATED_TOGETHER = 10
HEADS = {**RUNGS, **VARIANTS}
PRECISIONS = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


def main() -> None:
    """Runs what the command line asks for, cheap steps first where the time is not known yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs" / "ladder.yaml")
    parser.add_argument("--head", choices=[*HEADS], action="append")
    parser.add_argument("--data", choices=SETS, action="append")
    parser.add_argument("--column", choices=["steps", "time"], action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = HERE / options.config.stem
    folder.mkdir(exist_ok=True)
    for column in options.column or ["steps", "time"]:
        for seed in range(options.seeds):
            for data in options.data or SETS:
                for name in options.head or HEADS:
                    if column == "time" and name.startswith("spaceclip"):
                        continue  # their runs of equal steps are the measure
                    path = folder / f"{data}-{name}-{column}-seed{seed}.json"
                    if not path.exists():
                        steps = None if column == "steps" else _steps_in_time(folder, data, name)
                        run = train_and_measure(options.config, data, name, seed, steps)
                        path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
                        print(path.name, run["metrics"]["abs_rel"], flush=True)


def _steps_in_time(folder: Path, data: str, name: str) -> int:
    """As many steps of a head as take the CPU time of the published head's runs."""
    budget = statistics.mean(run["cpu_seconds"] for run in _runs(folder, data, MEASURE_OF_TIME))
    runs = _runs(folder, data, name)
    return int(budget / statistics.mean(run["cpu_seconds"] / run["steps"] for run in runs))


def _runs(folder: Path, data: str, name: str) -> list[dict[str, Any]]:
    """The run files of equal steps."""
    paths = sorted(folder.glob(f"{data}-{name}-steps-seed*.json"))
    if not paths:
        raise SystemExit(f"no run of {name} on {data} yet: run --column steps first")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def train_and_measure(
    path: Path, data: str, name: str, seed: int, steps: int | None
) -> dict[str, Any]:
    """One run.

    Args:
        path: The config that all runs share.
        data: The set, trained on its train and measured on its test split.
        name: Of the head.
        seed: Of weights, order and augmentation.
        steps: In place of the config's.

    Returns:
        The run file's content.
    """
    config = _config(path, data, name, seed, steps)
    session = open_session(config, Silent(), head_class=HEADS[name].kind)
    command = ("python", "results/ladder.py", *sys.argv[1:])
    started = describe_circumstances(
        command, session.accelerator.device, PRECISIONS[config.precision]
    )
    cpu_seconds, wall_seconds, loss = fit(session)
    head = session.accelerator.unwrap_model(session.model).head.eval()
    trained = [p for p in head.parameters() if p.requires_grad]
    return {
        "format": "clipdepth-ladder/1",
        "circumstances": started.model_dump(mode="json"),
        "data": data,
        "head": name,
        "seed": seed,
        "steps": session.total_steps,
        "images": session.total_steps * config.batch_size,
        "parameters": sum(p.numel() for p in trained),
        "cpu_seconds": cpu_seconds,
        "wall_seconds": wall_seconds,
        "last_loss": loss,
        "metrics": measure(session, head, data),
        "config": config.model_dump(mode="json"),
        "head_config": head.config.model_dump(mode="json"),
    }


def _config(path: Path, data: str, name: str, seed: int, steps: int | None) -> TrainConfig:
    rung = HEADS[name]
    config = load_config(
        path,
        [
            f"--data.train.0.root=$CLIPDEPTH_DATA/{data}",
            f"--head.preset={rung.preset}",
            f"--head.options={json.dumps(rung.options)}",
            f"--optimiser.lr={rung.lr}",
            f"--loss.auxiliary={list(rung.auxiliary)}",
            f"--loss.gradient={rung.gradient}",
            f"--head.standardise={rung.standardise}",
            f"--seed={seed}",
        ],
    )
    assert config.cache is not None
    # One folder for each set of levels that heads read, and for pixels.
    example = HeadConfig(width=1, preset=rung.preset, **rung.options)
    read = "-".join(map(str, example.levels)) + ("-pixels" if example.reads_pixels else "")
    cache = config.cache.model_copy(update={"folder": f"{config.cache.folder}/{data}-{read}"})
    changes: dict[str, Any] = {"cache": cache, "run": f"{config.run}/{data}-{name}-{seed}"}
    return config.model_copy(update=changes | ({} if steps is None else {"steps": steps}))


def fit(session: Session) -> tuple[float, float, float]:
    """All steps of a run.

    Returns:
        CPU seconds and seconds of them, and the mean loss of the last tenth.
    """
    config, losses, epoch = session.config, list[float](), 0
    cpu, wall = time.process_time(), time.perf_counter()
    while len(losses) < session.total_steps:
        for batch in session.sources.train.batches(epoch):
            rate = learning_rate(
                len(losses),
                session.total_steps,
                peak=config.optimiser.lr,
                final=config.schedule.final_lr,
                warmup=config.schedule.warmup,
            )
            losses.append(session.stepper([batch], rate, f"step {len(losses) + 1}").loss)
            if len(losses) == session.total_steps:
                break
        epoch += 1
    last = losses[-max(1, len(losses) // 10) :]
    return time.process_time() - cpu, time.perf_counter() - wall, statistics.mean(last)


def measure(session: Session, head: DepthHead, data: str) -> dict[str, float]:
    """Metric -> mean over the pictures of the test split."""
    device = session.accelerator.device
    plugin = DepthPlugin(session.tower.host.to(device), head)
    predict = HeadPredictor(plugin, session.tower.preprocessing)
    test = open_dataset(DataConfig(format="rgbd", root=f"$CLIPDEPTH_DATA/{data}", split="test"))
    protocol, rows = get_protocol("rgbd"), []
    samples_left = iterate(test)
    while samples := list(islice(samples_left, EVALUATED_TOGETHER)):
        maps = predict_samples(predict, samples, protocol)
        for sample, predicted in zip(samples, maps, strict=True):
            depth_HW = sample.depth_1HW[0]
            valid_HW = protocol.valid(depth_HW, sample.name)
            rows.append(
                image_metrics(predicted.metres_HW.clamp_min(protocol.low), depth_HW, valid_HW)
            )
    return {"pictures": len(rows), **mean_metrics(rows)}


if __name__ == "__main__":
    main()

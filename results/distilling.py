"""Distilling on the demo tower: students of a teacher's labels beside students of the truth.

    python results/distilling.py --train    # the teacher, its labels, the students; goes on
    python results/distilling.py --page     # distilling.md, from distilling.json

The teacher is the benchmark's DPT (heads_entries.py), trained on the truth of libero, tum,
hololens and real_mix. It labels the training pictures of libero and kitchen, of which a `fast` and
a `guided` student see the labels alone, and two others the truth.
CLIPDEPTH_DATA is the folder of the RGB-D sets.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from heads_entries import make_config
from heads_measure import Figures, measure
from heads_page import mean_cell
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin import DepthHead
from clipdepth_plugin.data.config import expand
from clipdepth_plugin.distilling.labels import split_labels
from clipdepth_plugin.distilling.recipe import Student, training_tree
from clipdepth_plugin.environment import Environment, describe_environment
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.labelling.job import LabelJob
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.training.accelerator import with_precision
from clipdepth_plugin.training.config_file import check_config, load_config
from clipdepth_plugin.training.engine import train

HERE = Path(__file__).resolve().parent
FOLDER = Path("runs/distilling")
LABELLED = ("libero", "kitchen")
TEACHER_SETS = ("libero", "tum", "hololens", "real_mix")
PRESETS = ("guided", "fast")  # the first fills the cache, with pixels, which the other leaves out
SEEDS = (0, 1, 2)
TEACHER_STEPS, STEPS, BATCH, SIDE = 1200, 1600, 8, 112
Learns = Literal["labels", "truth"]
logger = logging.getLogger("distilling")


class Trained(BaseModel):
    """A head and its figures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """``teacher``, or preset and what it learnt from."""
    seed: int
    sets: dict[str, Figures]


class Distilled(BaseModel):
    """distilling.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["clipdepth-distilling/1"] = "clipdepth-distilling/1"
    teacher_steps: int = TEACHER_STEPS
    steps: int = STEPS
    batch_size: int = BATCH
    heads: list[Trained]
    environment: Environment


def train_teacher() -> Path:
    """The folder of the teacher's head."""
    whole = make_config("dpt", seed=0, steps=TEACHER_STEPS, batch=BATCH, side=SIDE)
    data = {
        part: [one for one in getattr(whole.data, part) if Path(one.root).name in TEACHER_SETS]
        for part in ("train", "validation")
    }
    fields = whole.model_dump(mode="json", exclude_unset=True)
    chosen = {
        name: [one.model_dump(mode="json", exclude_unset=True) for one in sets]
        for name, sets in data.items()
    }
    fields |= {"run": str(FOLDER / "teacher"), "data": chosen}
    return _trained(fields)


def label_all(teacher: Path) -> dict[str, Path]:
    """Set -> the folder of the teacher's labels of its training pictures."""
    folders = {}
    for name in LABELLED:
        truth = Path(expand(f"$CLIPDEPTH_DATA/{name}"))
        camera = json.loads((truth / "meta.json").read_text("utf-8"))["intrinsics"].get("default")
        folders[name] = FOLDER / f"labels-{name}"
        job = LabelJob(
            pictures=(str(truth / "train"),),
            source=f"head:{teacher}@demo",
            folder=folders[name],
            settings=LabelSettings(**({} if name == "libero" else {"intrinsics": camera})),
            batch_size=8,
        )
        report = write_labels(job)
        logger.info("%s: %d labelled, %d there", name, report.labelled, report.present)
    return folders


def train_student(preset: str, seed: int, learns: Learns, labels: dict[str, Path]) -> Path:
    """The folder of a student's head."""
    run = FOLDER / f"{preset}-{learns}-seed{seed}"
    student = Student(host="demo", preset=preset, input_size=(SIDE, SIDE))
    tree = training_tree(split_labels(labels["libero"]), student, run)
    parts = {name: split_labels(folder) for name, folder in labels.items()}
    data: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for name, part in parts.items():
        for which, one in (("train", part.train), ("validation", part.held_out)):
            fields = one.model_dump(mode="json", exclude_unset=True)
            if learns == "truth":
                fields["root"] = f"$CLIPDEPTH_DATA/{name}"
            data[which].append(fields)
    del tree["epochs"]
    if learns == "truth":
        del tree["loss"]["trim"]
    tree |= {
        "data": data,
        "resize": "whole",
        "output_size": [SIDE, SIDE],
        "steps": STEPS,
        "batch_size": BATCH,
        "validate_every": STEPS // 2,
        "seed": seed,
        "cache": {"folder": str(FOLDER / f"tokens-{learns}")},
        "logging": {"pictures": 0, "tensorboard": False},
        "keep": 1,
    }
    return _trained(tree)


def _trained(fields: dict[str, Any]) -> Path:
    config = with_precision(check_config(fields, "results/distilling.py"))
    return train(config, resume=Path(config.run).exists()).head


def run() -> None:
    """Trains and measures what is not there yet; distilling.json grows by a head at a time."""
    teacher = train_teacher()
    labels = label_all(teacher)
    for seed in SEEDS:
        for preset in PRESETS:
            for learns in ("labels", "truth"):
                _add(f"{preset}, {learns}", seed, train_student(preset, seed, learns, labels))
    _add("teacher", 0, teacher)


def _add(name: str, seed: int, folder: Path) -> None:
    path = HERE / "distilling.json"
    found = Distilled.model_validate_json(path.read_text("utf-8")).heads if path.exists() else []
    if any((one.name, one.seed) == (name, seed) for one in found):
        return
    head = Trained(
        name=name, seed=seed, sets=measure(DepthHead.from_pretrained(folder), "demo", LABELLED)
    )
    config = load_config(folder.parent / "config.yaml")
    precision = config.precision.replace("no", "float32")
    command = ("python", "results/distilling.py", "--train")
    environment = describe_environment(command, "cpu", precision)
    whole = Distilled(heads=[*found, head], environment=environment)
    write_atomically(path, f"{whole.model_dump_json(indent=1)}\n".encode())


def page(measured: Distilled) -> str:
    """distilling.md."""
    teacher = next((one for one in measured.heads if one.name == "teacher"), None)
    rows = []
    for name in dict.fromkeys(one.name for one in measured.heads):
        own = [one.sets for one in measured.heads if one.name == name]
        cells = [name, str(len(own))]
        for data in LABELLED:
            raw, aligned = (
                [one[data].head[how]["abs_rel"] for one in own] for how in ("none", "median")
            )
            base = teacher and teacher.sets[data].head["none"]["abs_rel"]
            more = fmean(x or 0.0 for x in raw) / base - 1 if base else None
            cells += [mean_cell(raw), mean_cell(aligned), "-" if more is None else f"{more:+.1%}"]
        rows.append(cells)
    header = ["", "seeds"]
    for data in LABELLED:
        header += [f"{data} AbsRel", "aligned", "against the teacher"]
    about = (
        f"A DPT head, trained for {measured.teacher_steps} steps on the truth of "
        f"{', '.join(TEACHER_SETS)}, labels the training pictures of {' and '.join(LABELLED)}. "
        "Students of two presets learn from these labels alone, by the recipe of `clipdepth "
        f"distill`, or from the truth of the same pictures: {measured.steps} steps of "
        f"{measured.batch_size}, {SIDE} px. The teacher saw none of kitchen. Errors are against "
        "the truth of the test pictures, mean and standard deviation over the seeds."
    )
    table = markdown_table(header, rows)
    title = "# Distilling on the demo's tower"
    return "\n".join([title, "", about, "", *table, "", describe(measured.environment), ""])


def main(arguments: list[str]) -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.train:
        run()
    measured = Distilled.model_validate_json((HERE / "distilling.json").read_text("utf-8"))
    (HERE / "distilling.md").write_text(page(measured), "utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(sys.argv[1:])

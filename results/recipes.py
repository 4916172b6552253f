"""Time of the recipes in docs/distilling.md: teachers, towers and training, on this machine.

    python results/recipes.py > results/recipes.md

25 minutes on two cores, with all else stopped. Models have the published sizes and random weights,
the language models behind towers are tiny: nothing is downloaded. What runs is what `clipdepth
distill` runs, with its defaults.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from recipes_models import TEACHERS, TOWERS, Made

from clipdepth_plugin.distilling.labels import split_labels
from clipdepth_plugin.distilling.recipe import Student, training_tree
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.labelling.job import LabelJob
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.source import DepthSource, Label, Picture, SourceCard, open_source
from clipdepth_plugin.latency.report import describe, markdown_table
from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.session import open_session

SIZE, PICTURES, BATCH, ROUNDS = (480, 640), 24, 4, 4
VIEWS = 2
"""Of each picture in the cache: as it is, and mirrored."""
FIELDS = {"cache": None, "precision": "no", "logging": {"pictures": 0, "tensorboard": False}}
THOUSAND, EPOCHS = 1000, Student(host="").epochs


class Times(NamedTuple):
    """Seconds of a tower's part of a recipe.

    Attributes:
        picture: That the tower takes for a picture, of each batch.
        step: Of each step on a batch.
    """

    picture: list[float]
    step: list[float]


class Ramp(DepthSource):
    """A teacher that costs nothing: farther to the top, the same in a mirror."""

    card = SourceCard(source="ramp", units="metres", version="1")

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        """The same depth for each picture."""
        height, width = SIZE
        ramp_HW = np.linspace(5, 1, height, dtype=np.float32)[:, None].repeat(width, axis=1)
        return [Label(ramp_HW) for _ in pictures]


def save_pictures(folder: Path, count: int) -> str:
    """Random pictures, whose content costs the same as any."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels_HW3 = draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels_HW3).save(folder / f"{number:03d}.png")
    return str(folder)


def save(made: Made, folder: Path) -> Path:
    """A model's folder, as the hub's."""
    for part in made:
        part.save_pretrained(folder)
    return folder


def teacher_seconds(build: Callable[[], Made], count: int, folder: Path) -> float:
    """Of a teacher for a picture and its mirror."""
    torch.manual_seed(0)
    teacher = open_source(f"hf:{save(build(), folder / 'model')}")
    job = LabelJob(
        pictures=(save_pictures(folder / "pictures", count),),
        source="unused",
        folder=folder / "labels",
    )
    return write_labels(job, source=teacher).source_seconds / count


def tower_times(build: Callable[[], Made], labels: Path, folder: Path) -> Times:
    """Of a tower and its head, by the recipe."""
    torch.manual_seed(0)
    host = save(build(), folder / "host")
    tree = training_tree(split_labels(labels), Student(host=str(host)), folder / "run")
    config = check_config(tree | FIELDS | {"batch_size": BATCH}, "the recipe")
    session = open_session(config)
    times = Times([], [])
    batches = iter(session.train.batches(0, 0))
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        batch = next(batches)
        read = time.perf_counter()
        session.stepper([batch], 1e-4, "recipes")
        if number > 0:  # the first warms up
            times.picture.append((read - began) / BATCH)
            times.step.append(time.perf_counter() - read)
    return times


def main() -> None:
    """Prints the page."""
    environment = describe_environment(sys.argv, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        teachers = {}
        for name, (_, build, count) in TEACHERS.items():
            (root / name).mkdir()
            teachers[name] = teacher_seconds(build, count, root / name)
        pictures = save_pictures(root / "pictures", PICTURES)
        job = LabelJob(pictures=(pictures,), source="ramp", folder=root / "labels")
        write_labels(job, source=Ramp())
        rows = []
        for title, build, teacher in TOWERS:
            with tempfile.TemporaryDirectory() as own:
                times = tower_times(build, job.folder, Path(own))
            rows.append(row(title, teacher, teachers[teacher], times))
    spread = "; ".join(f"{name}, {TEACHERS[name][0]}: {x:.2f} s" for name, x in teachers.items())
    header = (
        "tower",
        "tower, s a picture",
        f"step of {BATCH}, s",
        "teacher",
        "labels, h",
        "tokens, h",
        "steps, h",
    )
    about = (
        f"{SIZE[1]} x {SIZE[0]} px, float32. Teachers, a picture and its mirror: {spread}. "
        f"Tower and step: median and range of {ROUNDS}. The last three columns are for {THOUSAND} "
        f"pictures and {EPOCHS} epochs, the command's default; a picture's tokens are computed "
        f"{VIEWS} times."
    )
    title, table = "# Time of the recipes", "\n".join(markdown_table(header, rows))
    sys.stdout.write("\n\n".join([title, about, table, describe(environment)]) + "\n")


def row(title: str, teacher: str, seconds: float, times: Times) -> tuple[str, ...]:
    """A tower's row; hours are for a thousand pictures."""
    hours = (
        THOUSAND * seconds / 3600,
        THOUSAND * VIEWS * median(times.picture) / 3600,
        EPOCHS * THOUSAND / BATCH * median(times.step) / 3600,
    )
    spreads = (f"{median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in times)
    return (title, *spreads, teacher, *(f"{x:.1f}" for x in hours))


if __name__ == "__main__":
    main()

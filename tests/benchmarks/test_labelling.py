"""Labelling: the share of its time that it spends in the predictor.

    make bench BENCH_ONLY= PYTEST_ARGS="-k labelling"

The predictor waits for as long as a model on a GPU takes, so that both cores are left to reading
and writing: 50 ms a picture (DepthAnything V2 Large at 518 on a data centre's GPU takes 20 to 60),
twice with the mirrored picture. Pictures are JPEGs of 640 x 480. At least 0.9 is wanted.

Axes: H W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from clipdepth_plugin.labelling.job import LabelJob
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.source import Label, Picture
from tests.labelling.fake import FakeSource

PICTURES, SECONDS, SIZE = 100, 0.05, (480, 640)


class Waiting(FakeSource):
    """Waits, then gives a slope with the noise that a network's depth has."""

    def __init__(self) -> None:
        super().__init__(seconds=SECONDS)
        rows_HW = np.linspace(8, 1, SIZE[0], dtype=np.float32)[:, None].repeat(SIZE[1], 1)
        noise_HW = np.random.default_rng(0).normal(1, 0.002, SIZE).astype(np.float32)
        self.map_HW = rows_HW * noise_HW

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        super().label(pictures)
        return [Label(self.map_HW) for _ in pictures]


def save_jpegs(folder: Path) -> Path:
    """Smooth random pictures, in a new folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_jpegs(tmp_path_factory.mktemp("benchmark") / "pictures")


@pytest.mark.parametrize("flip", [True, False])
def test_labelling(
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    pictures: Path,
    tmp_path: Path,
    flip: bool,
) -> None:
    shares: list[float] = []
    runs = count()

    def run() -> None:
        job = LabelJob(
            pictures=(str(pictures) if benchmark.enabled else str(pictures / "000.jpg"),),
            source=Waiting,
            folder=tmp_path / str(next(runs)),
            settings=LabelSettings(flip=flip),
            batch_size=4,
        )
        done = write_labels(job)
        shares.append(done.source_seconds / done.seconds)

    benchmark.pedantic(run, rounds=3 if benchmark.enabled else 1)
    benchmark.extra_info["images"] = PICTURES
    benchmark.extra_info["share of time in the predictor"] = shares
    share = statistics.median(shares)
    report(f"labelling, flip {flip}, share of time in the predictor: {share:.3f}")

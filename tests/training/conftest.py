"""What the training tests share: a tiny random host, a tiny data set, a run of a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.run_folder import read_log

HOST_SIZE = 28
HEAD = {
    "channels": [8, 4],
    "semantic_levels": [2, 1],
    "structural_levels": [0],
    "film_hidden": 8,
    "activation": "log",
    "auxiliary": 2,
}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "size": {"height": HOST_SIZE, "width": HOST_SIZE},
    "do_resize": True,
    "do_normalize": True,
    "resample": 3,
}


@dataclass(frozen=True)
class TinyRuns:
    """Runs that take seconds.

    Attributes:
        folder: Where everything is.
        host: Spec of a random Dinov2 of two blocks.
        data: An RGB-D folder with the splits train (7 pictures) and test (3).
        head: Options of a small head.
        exact_head: The same without batch norm and dropout.
    """

    folder: Path
    host: str
    data: str
    head: Mapping[str, Any]
    exact_head: Mapping[str, Any]

    def tree(self, name: str, **changes: Any) -> dict[str, Any]:
        """The fields of a run of six steps; ``changes`` replace fields of the top level."""
        train = {"format": "rgbd", "root": self.data, "split": "train"}
        fields: dict[str, Any] = {
            "run": str(self.folder / name),
            "host": self.host,
            "head": {"options": dict(self.head)},
            "data": {"train": [train], "validation": [{**train, "split": "test"}]},
            "optimiser": {"lr": 1e-2},
            "steps": 6,
            "batch_size": 2,
            "output_size": [16, 16],
            "precision": "no",  # auto is bf16 on some processors: other numbers
            "validate_every": 100,
            "checkpoint_every": 2,
            "logging": {"every": 1, "pictures": 0, "tensorboard": False},
            **changes,
        }
        if not fields["data"].get("validation"):
            fields["validate_every"] = None
        return fields

    def config(self, name: str, **changes: Any) -> TrainConfig:
        """The checked config of ``tree``."""
        return check_config(self.tree(name, **changes), "test")

    def losses(self, name: str) -> dict[int, float]:
        """Step -> loss, from a run's log."""
        records = read_log(self.folder / name / "log.jsonl")
        return {one["step"]: one["loss"] for one in records if one["kind"] == "train"}


@pytest.fixture(autouse=True)
def _on_one_cpu_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bit-equal runs need a CPU; one thread is fastest for tiny ones."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_host(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a random Dinov2 of two blocks, saved as transformers saves."""
    return save_tiny_host(tmp_path_factory.mktemp("host"), seed=0)


@pytest.fixture(scope="session")
def other_host(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with other weights."""
    return save_tiny_host(tmp_path_factory.mktemp("other-host"), seed=1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An RGB-D folder of slanted planes."""
    root = tmp_path_factory.mktemp("data") / "planes"
    for split, count in (("train", 7), ("test", 3)):
        for index in range(count):
            write_plane(root / split / "scene" / f"{index:03d}", seed=index + 100 * (count == 3))
    meta = {
        "depth_scale": 1000,
        "max_depth_m": 10.0,
        "intrinsics": {"default": [40.0, 40.0, 19.5, 15.5]},
    }
    (root / "meta.json").write_text(json.dumps(meta))
    return str(root)


@pytest.fixture
def tiny(tmp_path: Path, tiny_host: str, tiny_data: str) -> TinyRuns:
    """Runs in a folder of this test's own."""
    exact = {**HEAD, "norm": "group", "dropout": 0.0}
    return TinyRuns(tmp_path, tiny_host, tiny_data, HEAD, exact)


def save_tiny_host(folder: Path, seed: int, blocks: int = 2) -> str:
    """Saves a random Dinov2 as transformers saves; its spec."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Dinov2Config(
            hidden_size=16,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            mlp_ratio=2,
            patch_size=7,
            image_size=HOST_SIZE,
        )
        Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(folder)


def write_plane(stem: Path, seed: int, size: tuple[int, int] = (32, 40)) -> None:
    """A picture whose colours follow its depth, a corner without depth."""
    rng = np.random.default_rng(seed)
    y_HW, x_HW = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    slope_x, slope_y = rng.uniform(-1, 1, 2)
    depth_HW = 2.5 + slope_x * x_HW + slope_y * y_HW
    rgb_HWC = np.stack([60 * depth_HW, 255 * x_HW, rng.uniform(0, 255, y_HW.shape)], axis=-1)
    depth_HW[:4, :4] = 0
    stem.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb_HWC.clip(0, 255).astype(np.uint8)).save(f"{stem}.jpg", quality=92)
    Image.fromarray((depth_HW * 1000).astype(np.uint16)).save(f"{stem}.depth.png")

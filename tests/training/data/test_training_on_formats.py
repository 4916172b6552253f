"""A tiny head trains on every data format, and resumes in the middle of its epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from clipdepth_plugin.data import FORMATS as REGISTERED
from clipdepth_plugin.data import DataConfig
from clipdepth_plugin.training.engine import train

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns
    from tests.training.data.conftest import Trees


def make_mat(trees: Trees) -> DataConfig:
    h5py = pytest.importorskip("h5py")
    rng, path = np.random.default_rng(0), trees.folder / "labelled.mat"
    with h5py.File(path, "w") as file:
        file["images"] = rng.integers(0, 256, (5, 3, 32, 24), dtype=np.uint8)
        file["rawDepths"] = rng.uniform(0.5, 9, (5, 32, 24)).astype(np.float32)
    return DataConfig(format="nyu_mat", root=str(path), split="all")


def make_hub(trees: Trees) -> DataConfig:
    datasets = pytest.importorskip("datasets")
    rows: dict[str, list[Any]] = {"image": [], "depth": []}
    for value in range(6):
        grey = np.full((24, 32), 40 * value, np.uint8)
        for column, picture in (
            ("image", Image.fromarray(np.stack([grey] * 3, axis=-1))),
            ("depth", Image.fromarray(np.full((24, 32), 1000 + value, np.uint16))),
        ):
            content = io.BytesIO()
            picture.save(content, "png")
            rows[column].append({"bytes": content.getvalue(), "path": None})
    folder = trees.folder / "hub" / "data"
    folder.mkdir(parents=True)
    features = datasets.Features(image=datasets.Image(), depth=datasets.Image())
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return DataConfig(format="hf", root=str(trees.folder / "hub"), depth_scale=1000)


FORMATS: dict[str, Callable[[Trees], DataConfig]] = {
    "rgbd": lambda trees: trees.rgbd(),
    "nyu": lambda trees: trees.nyu(),
    "nyu_mat": make_mat,
    "kitti": lambda trees: trees.kitti(size=(352, 1216), crop="kb"),
    "webdataset": lambda trees: trees.tar(shuffle_buffer=3),
    "hf": make_hub,
}


def test_every_registered_format_is_trained_on() -> None:
    assert FORMATS.keys() == REGISTERED.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_on_every_format_resumes_within_an_epoch(
    trees: Trees, tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(trees.folder / "datasets-cache"))
    data = FORMATS[name](trees).model_dump(mode="json", exclude_unset=True)
    measured = {field: value for field, value in data.items() if field != "shuffle_buffer"}
    common: dict[str, Any] = {
        "data": {"train": [data], "validation": [measured]},
        "steps": 5,
        "checkpoint_every": 3,
        "batch_size": 2,
        "logging": {"every": 1, "pictures": 1, "tensorboard": False},
    }
    result = train(tiny.config("whole", **common))
    losses = tiny.losses("whole")
    assert all(math.isfinite(loss) for loss in losses.values())
    assert result.abs_rel is not None
    assert list((tiny.folder / "whole" / "pictures").iterdir())
    # Go back to the checkpoint of step 3, in the middle of the second epoch.
    (tiny.folder / "whole" / "checkpoints" / "step-00000005.safetensors").unlink()
    train(tiny.config("whole", **common), resume=True)
    assert tiny.losses("whole") == losses


def test_a_bad_file_is_replaced_up_to_the_limit(
    trees: Trees, tiny: TinyRuns, caplog: pytest.LogCaptureFixture
) -> None:
    config = trees.rgbd()
    bad = next(Path(config.root).rglob("003.png"))
    bad.write_bytes(b"no picture")
    data = {"train": [config.model_dump(mode="json", exclude_unset=True)]}
    cache = {"folder": str(tiny.folder / "cache"), "dtype": "float32"}
    for name, more in (("read", {}), ("cached", {"cache": cache})):
        changes: dict[str, Any] = {**more, "validate_every": None}
        with pytest.raises(ValueError, match="bad_file_limit = 0"):
            train(tiny.config(f"{name}-refused", data=data, augment={"flip": 0.5}, **changes))
        train(tiny.config(name, data=data, bad_file_limit=1, **flip_only(), **changes))
    assert "003 can't be used and is replaced" in caplog.text
    for step, loss in tiny.losses("read").items():
        assert tiny.losses("cached")[step] == pytest.approx(loss, abs=1e-5)


def flip_only() -> dict[str, Any]:
    off = {"rotation_degrees": 0.0, "gamma": [1, 1], "brightness": [1, 1], "colour": [1, 1]}
    return {"augment": {"flip": 0.5, **off}}

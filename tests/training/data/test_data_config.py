"""Configs are checked before anything is opened; paths keep their variables until then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clipdepth_plugin.data import (
    FORMATS,
    AugmentConfig,
    DataConfig,
    Sample,
    SampleDataset,
    open_dataset,
    register_format,
)
from clipdepth_plugin.errors import DataError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "rgbd", "files": "list.txt"}, "files: not read by format rgbd"),
        ({"format": "hf", "crop": "kb"}, "crop: not read by format hf"),
        ({"format": "kitti"}, "files: must be given, format kitti needs it"),
        ({"format": "nyu"}, "files: must be given, format nyu needs it"),
        ({"format": "nyu_mat", "split": "test"}, "needs the official splits.mat"),
        ({"format": "nyu_mat", "split": "val", "files": "s.mat"}, "has train, test and all"),
        ({"format": "rgbd", "min_depth": 2.0, "max_depth": 1.0}, "is not over"),
        ({"format": "rgbd", "intrinsics": (1, 1, 0, float("nan"))}, "a camera: got"),
        ({"format": "rgbd", "intrinsics": (-300, -300, 1, 1)}, "fx and fy positive"),
        ({"format": "rgbd", "intrinsics": (0, 0, 1, 1)}, "fx and fy positive"),
        ({"format": "rgbd", "roots": "x"}, "Extra inputs"),
        ({"format": "rgbd", "root": ""}, "at least 1 character"),
        ({"format": "rgbd", "repeat": 0}, "greater than 0"),
        ({"format": "video"}, "no such format 'video', known are hf, kitti"),
    ],
)
def test_contradictions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataConfig(**{"root": "somewhere", **fields})


def test_a_format_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "mine", FORMATS["rgbd"])
    del FORMATS["mine"]  # so that the format of this test goes with it

    @register_format("mine", reads={"crop"}, needs={"files"})
    class Mine(SampleDataset):
        def __init__(self, config: DataConfig) -> None:
            self._name = config.files or ""

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return Sample(torch.zeros(3, 2, 2), torch.ones(1, 2, 2), None, self.name(index))

        def name(self, index: int) -> str:
            return f"{self._name}/{index}"

    opened = open_dataset(DataConfig(format="mine", root="x", files="list"))
    assert isinstance(opened, Mine)
    assert opened[0].name == "list/0"
    with pytest.raises(ValidationError, match="files: must be given, format mine needs it"):
        DataConfig(format="mine", root="x")
    with pytest.raises(ValidationError, match="depth_key: not read by format mine, only by nyu_m"):
        DataConfig(format="mine", root="x", files="list", depth_key="depths")
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_format("mine")(Mine)


def test_defaults_of_other_formats_may_be_said() -> None:
    stored = DataConfig(format="rgbd", root="rooms").model_dump()
    assert DataConfig.model_validate(stored) == DataConfig(format="rgbd", root="rooms")


@pytest.mark.parametrize("root", ["$CLIPDEPTH_NOWHERE/rooms", "${CLIPDEPTH_NOWHERE}/rooms"])
def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.delenv("CLIPDEPTH_NOWHERE", raising=False)
    config = DataConfig(format="rgbd", root=root)
    assert config.root == root
    with pytest.raises(DataError, match="variable CLIPDEPTH_NOWHERE is not set"):
        open_dataset(config)


def test_variables_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPDEPTH_SETS", str(tmp_path))
    config = DataConfig(format="kitti", root="$CLIPDEPTH_SETS/kitti/", files="$CLIPDEPTH_SETS/l")
    assert config.path(config.files or "") == tmp_path / "l"
    assert config.path("raw") == tmp_path / "kitti" / "raw"
    assert config.title == "kitti"


@pytest.mark.parametrize(
    "fields",
    [
        {"gamma": (1.1, 0.9)},
        {"colour": (0.0, 1.0)},
        {"blur": (2.0, 1.0)},
        {"blur": (0.0, 1e9)},
        {"noise": (-0.1, 0.1)},
        {"jpeg": (0, 50)},
        {"jpeg": (90, 30)},
        {"saturation": (0.5, -0.5)},
        {"zoom": (0.8, 1.2)},
        {"flip": 1.5},
        {"rotation": 1},
    ],
)
def test_augmentation_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**fields)

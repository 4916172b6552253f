"""Hugging Face data sets, streamed from parquet files and from what save_to_disk wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import (
    Batch,
    DataConfig,
    StreamDataset,
    StreamMixture,
    open_dataset,
)
from clipdepth_plugin.errors import DataError
from tests.training.data.conftest import make

if TYPE_CHECKING:
    from tests.training.data.conftest import Trees


def opened(config: DataConfig) -> StreamDataset:
    data = open_dataset(config)
    assert isinstance(data, StreamDataset)
    return data


def batches(data: Any, preprocessing: Preprocessing, **options: Any) -> list[Batch]:
    return list(make(data, preprocessing, **{"epoch": 0, **options}))


def names(found: list[Batch]) -> list[str]:
    return [name for batch in found for name in batch.names]


@pytest.fixture
def hub(tmp_path: Path, trees: Trees, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A folder of two parquet files of four rows each, as on the hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    records = list(opened(trees.tar()).records())
    features = datasets.Features(
        image=datasets.Image(),
        depth=datasets.Image(),
        metres=datasets.Array2D((24, 32), "float32"),
        camera=datasets.Sequence(datasets.Value("float32")),
    )
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for part in (0, 1):
        rows = records[part * 4 : part * 4 + 4]
        datasets.Dataset.from_dict(
            {
                "image": [{"bytes": row.image, "path": None} for row in rows],
                "depth": [{"bytes": row.depth, "path": None} for row in rows],
                "metres": [np.full((24, 32), 2.5, np.float32)] * 4,
                "camera": [[30.0, 31.0, 15.5, 11.5]] * 4,
            },
            features=features,
        ).to_parquet(folder / f"train-{part:05d}-of-00002.parquet")
    return DataConfig(
        format="hf",
        root=str(tmp_path / "hub"),
        depth_scale=1000,
        intrinsics_column="camera",
        shuffle_buffer=3,
    )


def test_hub(hub: DataConfig, truth: Any, squash: Preprocessing) -> None:
    samples = list(opened(hub))
    assert [sample.name for sample in samples] == [
        f"hub/train/{i // 4:05d}/{i % 4:06d}" for i in range(8)
    ]
    torch.testing.assert_close(samples[6].depth_1HW[0], torch.from_numpy(truth(6)))
    assert samples[6].image_3HW[2, 0, 0] == 60
    assert samples[6].intrinsics == (30.0, 31.0, 15.5, 11.5)
    first, again, later = (batches([hub], squash, epoch=epoch) for epoch in (0, 0, 1))
    assert [one.depth_B1HW.max() for one in first] == [one.depth_B1HW.max() for one in again]
    assert [one.depth_B1HW.max() for one in first] != [one.depth_B1HW.max() for one in later]
    floats = hub.model_copy(update={"depth_column": "metres", "depth_scale": None})
    assert set(next(iter(opened(floats))).depth_1HW.unique().tolist()) == {2.5}
    ranks = [batches([hub], squash, rank=rank, world_size=2, workers=1) for rank in (0, 1)]
    assert len({*names(ranks[0]), *names(ranks[1])}) == 8


def test_hub_saved_to_disk(hub: DataConfig, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_parquet(str(next(Path(hub.root).rglob("*.parquet"))))
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "dict")
    for name in ("saved", "dict"):
        config = hub.model_copy(update={"root": str(tmp_path / name)})
        assert len(list(opened(config))) == 4


def test_files_that_rows_only_name_are_not_read(hub: DataConfig, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    named = [{"path": "/secret/0.png", "bytes": None}]
    rows = datasets.Dataset.from_dict({"image": named, "depth": named})
    rows.save_to_disk(tmp_path / "named")
    changes = {"root": str(tmp_path / "named"), "intrinsics_column": None}
    data = opened(hub.model_copy(update=changes))
    with pytest.raises(DataError, match=r"column 'image' only names files \(/secret/0\.png\)"):
        next(data.records())


def test_hub_errors(hub: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'z', only image, depth"):
        open_dataset(hub.model_copy(update={"depth_column": "z"}))
    with pytest.raises(DataError, match="can't be opened"):
        open_dataset(hub.model_copy(update={"split": "night"}))
    with pytest.raises(DataError, match="can't be opened"):
        open_dataset(hub.model_copy(update={"root": str(tmp_path / "nowhere")}))


def test_a_hub_stream_that_breaks_off(hub: DataConfig, squash: Preprocessing) -> None:
    shard = max(Path(hub.root).rglob("*.parquet"))
    data = opened(hub)
    shard.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="hub/train/00001: the stream broke off"):
        batches(StreamMixture([data], [1.0]), squash, shuffle=False, workers=1)

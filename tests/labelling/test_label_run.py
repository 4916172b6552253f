"""A run: what it writes, and what it does when it goes on, is split, or meets bad files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.errors import ClipDepthError, DataError, DepthFileError, SourceError
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.labelling.frames import FrameFiles
from clipdepth_plugin.labelling.job import LabelJob, Progress
from clipdepth_plugin.labelling.pictures import Content
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.shards import Shard
from clipdepth_plugin.labelling.source import Label, Picture
from clipdepth_plugin.labelling.validity import Stored
from tests.labelling.fake import FakeSource, frames, hashes, job, picture, save_tree, stored
from tests.labelling.test_label_pictures import write_tars, write_video

NAMES = ["a.png", "b.jpg", "c.png", "s/d.png", "s/e.bmp", "t/f.png", "t/g.png"]
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    return save_tree(tmp_path / "pics", NAMES)


def whole(pics: Path, folder: Path, **fields: Any) -> dict[str, str]:
    write_labels(job(pics, folder=folder, **fields))
    return hashes(folder)


def test_the_folder_is_read_as_data(tmp_path: Path, pics: Path) -> None:
    report = write_labels(job(pics, folder=tmp_path / "out", batch_size=3))
    assert (report.labelled, report.present, report.bad, report.empty) == (7, 0, {}, ())
    data = open_dataset(DataConfig(format="rgbd", root=str(tmp_path / "out"), split="train"))
    assert isinstance(data, SampleDataset)
    assert [data.name(i) for i in (0, 3)] == ["out/train/pics/a", "out/train/pics__s/d"]
    red_HW = picture(3)[..., 0].astype(np.float32)
    np.testing.assert_allclose(data[3].depth_1HW[0], 0.5 + red_HW / 50, atol=1 / 1200)
    assert data[3].intrinsics is None
    np.testing.assert_array_equal(data[3].image_3HW.permute(1, 2, 0), picture(3))
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    labels = meta["labels"]
    given = labels["source"], labels["licence"], labels["units"]
    assert given == ("fake:metres", "MIT", "metres")
    agreement_HW = stored(tmp_path / "out" / "train" / "pics" / "a.agreement.png")
    assert (agreement_HW == 255).all()


def test_relative_depth_is_never_called_metres(tmp_path: Path, pics: Path) -> None:
    source = FakeSource("inverse depth")
    write_labels(job(pics, folder=tmp_path / "out"), source=source)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["units"] == "inverse depth"
    assert not {"depth_scale", "max_depth_m"} & meta.keys()
    names = hashes(tmp_path / "out")
    assert "train/pics/a.inverse.png" in names
    assert not any(name.endswith(".depth.png") for name in names)
    red_HW = picture(0)[..., 0]
    stored_HW = stored(tmp_path / "out" / "train" / "pics" / "a.inverse.png")
    assert ((stored_HW == 0) == (red_HW == 0)).all()
    settings = job(pics, folder=tmp_path).settings.model_copy(update={"max_depth": 5.0})
    with pytest.raises(SourceError, match="relative depth, which has no metres"):
        write_labels(job(pics, folder=tmp_path / "new", settings=settings), source=source)
    assert not (tmp_path / "new").exists()


def test_cameras_are_kept_and_told_also_mirrored(tmp_path: Path, pics: Path) -> None:
    (pics / "intrinsics.json").write_text(json.dumps({"a": [20, 20, 4, 5], "b": None}))
    source = FakeSource()
    source.keep_seen = True
    write_labels(job(pics / "a.png", folder=tmp_path / "out"), source=source)
    plain, mirrored = source.seen
    assert (plain.intrinsics, mirrored.intrinsics) == ((20, 20, 4, 5), (20, 20, 11, 5))
    np.testing.assert_array_equal(mirrored.image_HW3, plain.image_HW3[:, ::-1])
    own = tmp_path / "out" / "train" / "pics" / "intrinsics.json"
    assert json.loads(own.read_text()) == {"a": [20, 20, 4, 5]}
    own.unlink()  # as a killed run leaves it
    write_labels(job(pics / "a.png", pics / "b.jpg", folder=tmp_path / "out"))
    assert json.loads(own.read_text()) == {"a": [20, 20, 4, 5], "b": None}


def test_threads_batches_and_shards_change_no_file(tmp_path: Path, pics: Path) -> None:
    expected = whole(pics, tmp_path / "one")
    assert frames(expected) == [
        *("train/pics/a", "train/pics/b", "train/pics/c", "train/pics__s/d", "train/pics__s/e"),
        *("train/pics__t/f", "train/pics__t/g"),
    ]
    assert whole(pics, tmp_path / "batches", batch_size=4, threads=3) == expected
    reports = [
        write_labels(job(pics, folder=tmp_path / "shards", shard=Shard(i, 3))) for i in (3, 1, 2)
    ]
    assert hashes(tmp_path / "shards") == expected
    assert sum(report.labelled for report in reports) == 7


def test_shards_that_run_at_once(tmp_path: Path, pics: Path) -> None:
    expected = whole(pics, tmp_path / "one")
    jobs = [job(pics, folder=tmp_path / "out", shard=Shard(i, 4)) for i in range(1, 5)]
    threads = [threading.Thread(target=write_labels, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashes(tmp_path / "out") == expected


def test_streams_and_videos_in_shards(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 4, 3)
    video = write_video(tmp_path / "film.mp4", 5)
    expected = frames(_labelled(job(tars, video, folder=tmp_path / "one")))
    assert len(expected) == 17
    for of in (2, 9):  # whole tar files, then single pictures
        for number in range(1, of + 1):
            found = _labelled(job(tars, video, folder=tmp_path / str(of), shard=Shard(number, of)))
        assert frames(found) == expected


def _labelled(one: LabelJob) -> dict[str, str]:
    write_labels(one)
    return hashes(one.folder)


def test_what_is_there_stays_and_what_lacks_a_file_is_made_again(
    tmp_path: Path, pics: Path
) -> None:
    folder = tmp_path / "out"
    expected = whole(pics, folder)
    for name in ("pics/a.png", "pics/b.depth.png", "pics/c.agreement.png"):
        (folder / "train" / name).unlink()
    (folder / "train" / "pics" / ".writing-left").write_bytes(b"half")
    seen: list[Progress] = []
    report = write_labels(job(pics, folder=folder), advance=seen.append)
    assert (report.labelled, report.present) == (3, 4)
    assert hashes(folder) == expected
    assert seen[-1] == Progress(done=7, total=7, labelled=3, bad=0)


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        ({"max_depth": 20.0}, {}, "depth_scale of the labels there is 600.0, and now 3000.0"),
        ({"reads_focal": True}, {}, "reads_focal of the labels there is False, and now True"),
        ({}, {"flip": False}, "flip of the labels there is True, and now False"),
        ({}, {"dtype": "float16"}, "dtype of the labels there is None, and now 'float16'"),
        ({}, {"focal_px": 20.0}, "focal_px of the labels there is None, and now 20.0"),
        ({}, {"max_depth": 5.0}, "max_depth of the labels there is None, and now 5.0"),
    ],
)
def test_labels_of_another_source_are_refused(
    tmp_path: Path, pics: Path, card: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    before = whole(pics, tmp_path / "out")
    other = job(pics, folder=tmp_path / "out")
    other = replace(other, settings=other.settings.model_copy(update=settings))
    with pytest.raises(SourceError, match=message):
        write_labels(other, source=FakeSource(**card))
    assert hashes(tmp_path / "out") == before


def test_a_mistake_before_the_first_label_does_not_claim_the_folder(
    tmp_path: Path, pics: Path
) -> None:
    wrong = LabelSettings(intrinsics_file=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="no such file"):
        write_labels(job(pics, folder=tmp_path / "out", settings=wrong))
    (tmp_path / "out" / ".shard-2-of-2.lock").touch()  # another process works there
    with pytest.raises(SourceError, match=r"intrinsics_file of the labels there is '.*none\.json'"):
        write_labels(job(pics, folder=tmp_path / "out"))
    (tmp_path / "out" / ".shard-2-of-2.lock").unlink()
    assert whole(pics, tmp_path / "out") == whole(pics, tmp_path / "new")


def test_folders_that_are_refused(tmp_path: Path, pics: Path) -> None:
    before = hashes(tmp_path)
    with pytest.raises(SourceError, match="whose pictures are labelled"):
        write_labels(job(pics, folder=pics / "labels"))
    with pytest.raises(SourceError, match="whose pictures are labelled"):
        write_labels(job(pics, folder=pics))
    with pytest.raises(SourceError, match=r"holds 'pics' and no meta\.json"):
        write_labels(job(pics, folder=tmp_path))
    assert hashes(tmp_path) == before
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "meta.json").write_text('{"depth_scale": 1000}')
    with pytest.raises(SourceError, match="clipdepth did not label"):
        write_labels(job(pics, folder=tmp_path / "set"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipDepthError, match="can't be made"):
        write_labels(job(pics, folder=tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("spec", "folder", "is_told_at_once"),
    [
        ("pics/**/*.[pj][np]g", "pics/labels", True),
        ("pics/**/*.[pj][np]g", "link/labels", True),
        ("link/**/*.[pj][np]g", "pics/labels", True),
        ("pics", "labels", False),  # that a link in pics leads to
        ("pics", "link/labels", True),
        ("link", "pics/labels", True),
    ],
)
def test_a_run_does_not_label_its_own(
    tmp_path: Path, pics: Path, spec: str, folder: str, *, is_told_at_once: bool
) -> None:
    (tmp_path / "link").symlink_to(pics)
    (tmp_path / "labels").mkdir()
    (pics / "far").symlink_to(tmp_path / "labels")
    again = job(tmp_path / spec, folder=tmp_path / folder)
    if not is_told_at_once:
        assert write_labels(again).labelled > 0
    before = hashes(tmp_path)
    with pytest.raises(SourceError, match="whose pictures are labelled, and its own would be"):
        write_labels(again)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("writes", range(4))
def test_a_replaced_frame_never_has_the_picture_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, writes: int
) -> None:
    """Killed after some of its three files are written, too."""
    files, left = FrameFiles("metres", flip=True), [3]

    def write_or_end(*given: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write_atomically(*given)

    monkeypatch.setattr("clipdepth_plugin.labelling.frames.write_atomically", write_or_end)

    def write(value: int, suffix: str) -> None:
        content = Content(np.full((8, 8, 3), value, np.uint8), None, suffix)
        grey_HW = np.full((8, 8), value)
        label = Stored(grey_HW.astype(np.uint16), grey_HW.astype(np.uint8))
        files.write(tmp_path, "a", content, label, None)

    write(10, ".png")
    left[0] = writes
    with contextlib.suppress(KeyboardInterrupt):
        write(200, suffix)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert bool(files.whole(names)) == (writes == 3)
    if writes == 3:
        assert names == sorted(["a.agreement.png", "a.depth.png", f"a{suffix}"])
        assert {int(stored(tmp_path / name).min()) for name in names} == {200}


def test_a_shard_is_labelled_by_one_process_at_a_time(tmp_path: Path, pics: Path) -> None:
    began = threading.Event()

    class Slow(FakeSource):
        def label(self, pictures: Any) -> Any:
            began.set()
            time.sleep(0.5)
            return super().label(pictures)

    first = threading.Thread(
        target=write_labels, args=(job(pics / "a.png", folder=tmp_path / "out"),),
        kwargs={"source": Slow()},
    )  # fmt: skip
    first.start()
    began.wait()
    with pytest.raises(DepthFileError, match=r"process \d+ on .* holds this lock"):
        write_labels(job(pics, folder=tmp_path / "out"))
    first.join()
    assert not [name for name in hashes(tmp_path / "out") if "lock" in name]


def test_bad_files_are_named_and_left_out_up_to_a_limit(tmp_path: Path) -> None:
    bad = [1, 5, 6, 11]
    tars = write_tars(tmp_path / "tars", 3, 4, bad=bad)
    report = write_labels(job(tars, folder=tmp_path / "out", bad_file_limit=4, batch_size=4))
    assert [*report.bad] == [f"shard-{i // 4:02d}/{i:05d}" for i in bad]
    assert all("damaged" in reason for reason in report.bad.values())
    assert report.labelled == 8
    again = write_labels(job(tars, folder=tmp_path / "out", bad_file_limit=4))
    assert (again.labelled, again.present, again.bad) == (0, 8, report.bad)
    with pytest.raises(DataError, match=r"(?s)more than bad_file_limit = 3.*00011"):
        write_labels(job(tars, folder=tmp_path / "less", bad_file_limit=3))


class Fussy(FakeSource):
    """Fails on pictures of one colour, in a batch with others too."""

    def label(self, pictures: Sequence[Picture]) -> list[Label]:
        if any(np.ptp(one.image_HW3) == 0 for one in pictures):
            raise SourceError("fussy: too plain")
        return super().label(pictures)


def test_pictures_that_the_source_fails_on_are_bad_files(tmp_path: Path) -> None:
    pics = save_tree(tmp_path / "pics", [f"{i}.png" for i in range(5)])
    Image.new("RGB", (16, 12)).save(pics / "2.png")
    one = job(pics, folder=tmp_path / "out", source=Fussy, batch_size=4)
    with pytest.raises(SourceError, match="too plain"):
        write_labels(one)
    report = write_labels(replace(one, bad_file_limit=1))
    assert report.bad == {str(pics / "2.png"): "fussy: too plain"}
    write_labels(job(pics, folder=tmp_path / "good", bad_file_limit=1, source=Fussy))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "good")
    assert report.labelled + report.present == 4
    Image.new("RGB", (16, 12)).save(pics / "5.png")
    with pytest.raises(DataError, match=r"(?s)more than bad_file_limit = 1 .*2.png.*5.png"):
        write_labels(replace(one, bad_file_limit=1))


@pytest.mark.parametrize("length", [2048, 2500, 2600])  # at, in and behind a header
def test_a_damaged_shard_and_video_are_bad_files(tmp_path: Path, length: int) -> None:
    tars = write_tars(tmp_path / "tars", 2, 4)
    first = tmp_path / "tars" / "shard-00.tar"
    first.write_bytes(first.read_bytes()[:length])
    video = write_video(tmp_path / "film.mp4", 3)
    video.write_bytes(b"x" + video.read_bytes()[1:600])
    report = write_labels(job(tars, video, folder=tmp_path / "out", bad_file_limit=2))
    assert report.labelled == 4
    shard, film = report.bad.values()
    assert "shard is damaged" in shard
    assert "video is damaged" in film


def test_a_failure_names_its_shard(tmp_path: Path, pics: Path) -> None:
    (pics / "a.png").write_bytes(b"x")
    number = next(i for i in (1, 2) if Shard(i, 2).has("pics/a"))
    with pytest.raises(DataError, match=rf"^shard {number}/2: more than bad_file_limit = 0"):
        write_labels(job(pics, folder=tmp_path / "out", shard=Shard(number, 2)))
    write_labels(job(pics, folder=tmp_path / "out", shard=Shard(3 - number, 2)))


def test_a_source_of_other_sizes_is_an_error(tmp_path: Path, pics: Path) -> None:
    class Cut(FakeSource):
        def label(self, pictures: Any) -> Any:
            return super().label(pictures)[:-1]

    with pytest.raises(SourceError, match=r"fake:metres: of pics/a, pictures of \[\(12, 16\)\]"):
        write_labels(job(pics, folder=tmp_path / "out"), source=Cut())


def test_masks(tmp_path: Path, pics: Path) -> None:
    save_tree(tmp_path / "masks", [])
    settings = job(pics, folder=tmp_path).settings.model_copy(
        update={"masks": str(tmp_path / "masks")}
    )
    from PIL import Image

    keep_HW = np.zeros((12, 16), np.uint8)
    keep_HW[3:] = 255
    (tmp_path / "masks" / "pics").mkdir(parents=True)
    Image.fromarray(keep_HW).save(tmp_path / "masks" / "pics" / "a.png")
    report = write_labels(
        job(
            *(pics / "a.png", pics / "b.jpg"),
            folder=tmp_path / "out", settings=settings, bad_file_limit=1,
        )
    )  # fmt: skip
    depth_HW = stored(tmp_path / "out" / "train" / "pics" / "a.depth.png")
    np.testing.assert_array_equal(depth_HW > 0, keep_HW > 0)
    ((name, reason),) = report.bad.items()
    assert name.endswith("b.jpg")
    assert "no such file" in reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"every": 1.5}, "every: got 1.5"),
        ({"split": "../x"}, "expected a plain name"),
        ({"split": ""}, "expected a plain name"),
        ({"pictures": "pics"}, "expected a tuple"),
    ],
)
def test_jobs_that_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipDepthError, match=message):
        LabelJob(**{"pictures": ("x",), "source": "fake:x", "folder": tmp_path, **fields})


def test_pictures_without_depth_are_said(tmp_path: Path, pics: Path) -> None:
    settings = job(pics, folder=tmp_path).settings.model_copy(update={"max_depth": 0.4})
    report = write_labels(job(pics, folder=tmp_path / "out", settings=settings))
    assert len(report.empty) == report.labelled == 7


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "1/9999999"])
def test_no_shards(text: str) -> None:
    with pytest.raises(SourceError, match="expected I/N"):
        Shard.parse(text)


def test_killed_again_and_again(tmp_path: Path) -> None:
    pics = save_tree(tmp_path / "pics", [f"s{i % 3}/{i:03d}.png" for i in range(18)])
    expected = whole(pics, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "label_killed.py"), pics, tmp_path / "out", "5", "0"],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1])},
    )  # fmt: skip
    assert done.stdout == "5 0\n", done.stderr
    assert hashes(tmp_path / "out") == expected
    assert not list((tmp_path / "out").rglob(".*"))

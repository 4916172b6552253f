"""``clipdepth label``: its options reach the job, its end names what is missing, help is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.labelling import source as sources
from clipdepth_plugin.labelling.shards import Shard
from tests.labelling.fake import FakeSource, frames, hashes, save_tree
from tests.labelling.test_label_pictures import write_tars, write_video
from tests.tiny.command_line import run, words


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The source ``fake:``; how it was opened."""
    opened: list[dict[str, Any]] = []

    def open_fake(rest: str, **options: Any) -> FakeSource:
        opened.append({"rest": rest, **options})
        return FakeSource()

    monkeypatch.setitem(sources.SOURCES, "fake", open_fake)
    return opened


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    return save_tree(tmp_path / "pics", ["a.png", "b.png", "s/c.png"])


def test_pictures_videos_and_streams_in_one_run(
    tmp_path: Path, pics: Path, fake: list[dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    video = write_video(tmp_path / "film.mp4", 4)
    tars = write_tars(tmp_path / "tars", 2, 2)
    config = tmp_path / "more.yaml"
    config.write_text(
        f"format: webdataset\nroot: {write_tars(tmp_path / 'm', 1, 1).root}\nname: m\n"
    )
    done = run(
        *("label", pics, video, f"webdataset:{tars.root}", config, "--teacher", "fake:x"),
        *("-o", out, "--every", "3", "--dtype", "float32", "--batch-size", "2"),
    )
    assert done.exit_code == 0, done.output
    assert fake == [{"rest": "x", "device": "cpu", "dtype": "float32"}]
    assert frames(hashes(out)) == [
        "train/film.mp4/000000",
        "train/film.mp4/000003",
        "train/m__shard-00/00000",
        "train/pics/a",
        "train/pics/b",
        "train/pics__s/c",
        *("train/shard-00/00000", "train/shard-00/00001"),
        *("train/shard-01/00002", "train/shard-01/00003"),
    ]
    assert "10 pictures labelled in" in words(done.output)
    again = run(
        *("label", pics, video, f"webdataset:{tars.root}", config, "--teacher", "fake:x"),
        *("-o", out, "--every", "3", "--dtype", "float32"),
    )
    assert "0 pictures labelled, 10 were there" in words(again.output)


def test_settings_are_kept(tmp_path: Path, pics: Path) -> None:
    (tmp_path / "cameras.json").write_text('{"pics/a": [20, 20, 7, 5]}')
    done = run(
        *("label", pics, "--teacher", "fake:x", "-o", tmp_path / "out", "--split", "val"),
        *("--no-flip", "--no-exif", "--max-depth", "5", "--shard", "2/2"),
        *("--intrinsics", tmp_path / "cameras.json"),
    )
    assert done.exit_code == 0, done.output
    names = ("pics/a", "pics/b", "pics__s/c")
    mine = [f"val/{name}" for name in names if Shard(2, 2).has(name)]
    assert frames(hashes(tmp_path / "out")) == mine
    labels = json.loads((tmp_path / "out" / "meta.json").read_text())["labels"]
    assert labels["settings"] == {
        "flip": False, "max_depth": 5.0, "focal_px": None, "intrinsics": None,
        "intrinsics_file": str(tmp_path / "cameras.json"), "exif": False, "masks": None,
        "dtype": None,
    }  # fmt: skip


def test_bad_pictures_are_named_at_the_end(tmp_path: Path, pics: Path) -> None:
    (pics / "b.png").write_bytes(b"x")
    out = tmp_path / "out"
    command = ("label", pics, "--teacher", "fake:x", "-o", out, "--bad-file-limit")
    done = run(*command, "1")
    assert done.exit_code == 1
    assert "not done:" in done.output.splitlines()[-1]
    assert "b.png: is a text file" in words(done.output.splitlines()[-1])
    failed = run(*command, "0")
    assert failed.exit_code == 2
    assert "more than bad_file_limit = 0" in words(failed.output)
    assert "the same command goes on from there" in words(failed.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "shard '3/2': expected I/N"),
        (["--actors", "2"], "are Ray's; add --ray"),
        (["--split", "../x"], "expected a plain name"),
        (["--focal-px", "5", "--intrinsics", "5,5,3,3"], "give one of them"),
        (["--intrinsics", "5,5,3"], "a camera"),
        (["--intrinsics", "gone.json"], "gone.json: no such file"),
        (["--device", "nowhere"], "nothing can be computed there"),
        (["--ray", "--shard", "1/2"], "Ray deals out the shards"),
    ],
)
def test_options_that_are_refused(
    tmp_path: Path, pics: Path, arguments: list[str], message: str
) -> None:
    done = run("label", pics, "--teacher", "fake:x", "-o", tmp_path / "out", *arguments)
    assert done.exit_code == 2, done.output
    assert message in words(done.output)
    assert not hashes(tmp_path / "out") or "gone" in message


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nsys.argv = ['clipdepth', 'label', '--help']\n"
        "from clipdepth_plugin.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--teacher" in done.stdout

"""Locks of folders, and what killed processes leave: by processes that are really killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from clipdepth_plugin.cli.app import app
from clipdepth_plugin.errors import DepthFileError, TrainingError
from clipdepth_plugin.files import atomic
from clipdepth_plugin.files.atomic import TEMPORARY, new_files, remove_leftovers, write_atomically
from clipdepth_plugin.files.locks import LOCK_FILE, locked_folder

CHILDREN = """
import os, signal, sys, time
from pathlib import Path
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.files import atomic, locks

def wait(also=""):
    print("ready", os.getpid(), also, flush=True)
    time.sleep(60)

def locked(folder):
    with locks.locked_folder(folder, TrainingError, "run folder"):
        wait()

def locked_with_worker(folder):
    with locks.locked_folder(folder, TrainingError, "run folder"):
        begun, says = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.write(says, b"1")  # it is through what is done after a fork
            time.sleep(60)
        os.read(begun, 1)
        wait(worker)

def file(folder):
    atomic.write_atomically(folder / "map.npy", lambda file: (file.write(b"half"), wait()))

def files(folder):
    with atomic.new_files(folder, TrainingError) as new:
        (new / "model.safetensors").write_bytes(b"half")
        wait()

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    what, folder = line.split()
    if os.fork() == 0:
        globals()[what](Path(folder))
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Others:
    """Processes that hold a lock, or are in the middle of writing."""

    def __init__(self) -> None:
        words = [sys.executable, "-c", CHILDREN]
        self._parent = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._started: list[int] = []

    def start(self, what: str, folder: Path) -> list[int]:
        """The ids of the process and, where it has one, of its worker."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{what} {folder}\n")
        self._parent.stdin.flush()
        ready, *ids = self._parent.stdout.readline().split()
        assert ready == "ready"
        self._started += map(int, ids)
        return list(map(int, ids))

    def kill(self, *ids: int) -> None:
        for one in ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
            for _ in range(500):
                if not Path(f"/proc/{one}").exists():
                    break
                time.sleep(0.01)

    def close(self) -> None:
        self.kill(*self._started)
        self._parent.communicate()


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    made = Others()
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_locked_until_its_process_is_killed(tmp_path: Path, others: Others) -> None:
    folder = tmp_path / "run"
    (other,) = others.start("locked", folder)
    message = rf"{re.escape(str(folder))}: process {other} on \S+ uses this run folder now"
    with (
        pytest.raises(TrainingError, match=message),
        locked_folder(folder, TrainingError, "run folder"),
    ):
        pytest.fail("locked twice")
    others.kill(other)
    with locked_folder(folder, TrainingError, "run folder"):
        assert names(folder) == [LOCK_FILE]
        assert str(os.getpid()) in (folder / LOCK_FILE).read_text()
    assert not list(folder.iterdir())


def test_threads_of_one_process_lock_each_other_out_and_errors_release(tmp_path: Path) -> None:
    problems: list[str] = []

    def second() -> None:
        try:
            with locked_folder(tmp_path / "a" / "b", TrainingError, "run folder"):
                problems.append("none")
        except TrainingError as error:
            problems.append(str(error))

    def first() -> None:
        with locked_folder(tmp_path / "a" / "b", TrainingError, "run folder"):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        first()
    assert f"process {os.getpid()}" in problems[0]
    assert not (tmp_path / "a").exists()  # nothing was written
    second()
    assert problems[1] == "none"


def test_a_worker_that_outlives_its_killed_process_holds_no_lock(
    tmp_path: Path, others: Others
) -> None:
    process, worker = others.start("locked_with_worker", tmp_path)
    others.kill(process)
    with locked_folder(tmp_path, TrainingError, "run folder"):
        assert Path(f"/proc/{worker}").exists()


@pytest.mark.parametrize("obstacle", ["folder", "pipe", "link", "file above"])
def test_what_is_in_the_way_of_a_lock_is_reported_and_left(tmp_path: Path, obstacle: str) -> None:
    folder, kept = tmp_path / "run", tmp_path / "notes.txt"
    kept.write_text("mine")
    if obstacle == "file above":
        folder = kept / "run"
    else:
        folder.mkdir()
        path = folder / LOCK_FILE
        ways: dict[str, Callable[[], object]] = {
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "link": lambda: path.symlink_to(kept),
        }
        ways[obstacle]()
    with (
        pytest.raises(DepthFileError, match="can't be made or written to"),
        locked_folder(folder, DepthFileError, "output folder"),
    ):
        pytest.fail("locked")
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("what", ["file", "files"])
def test_what_a_killed_process_wrote_goes_when_the_folder_is_written_to_next(
    tmp_path: Path, others: Others, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(atomic, "_cleaned", set())
    (killed,), (alive,) = (others.start(what, tmp_path) for _ in range(2))
    before = names(tmp_path)
    others.kill(killed)
    assert names(tmp_path) == before  # nobody wrote since
    write_atomically(tmp_path / "other.png", b"whole")
    left = {path.name for path in tmp_path.glob(f"{TEMPORARY}*")}
    assert len(left) == 1  # the living one's
    others.kill(alive)
    with new_files(tmp_path / "head", TrainingError) as new:
        (new / "a").write_bytes(b"1")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["head", "head/a", "other.png"]


def test_threads_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others look for leftovers."""
    problems: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(20):
                remove_leftovers(tmp_path)
                write_atomically(tmp_path / f"{number}-{turn}", b"whole")
                with new_files(tmp_path, TrainingError) as new:
                    (new / f"{number}-{turn}-2").write_bytes(b"whole")
        except BaseException as error:  # noqa: BLE001 (reported below)
            problems.append(error)

    monkeypatch.setattr(atomic, "sync", lambda _: None)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(names(tmp_path)) == 4 * 20 * 2
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"whole"}


@pytest.mark.parametrize("command", ["predict", "eval", "bench"])
def test_two_commands_do_not_write_into_one_folder(tmp_path: Path, command: str) -> None:
    picture, output = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (8, 8)).save(picture)
    words = {
        "predict": ["predict", str(picture), "--host", "demo", "--head", "demo"],
        "eval": ["eval", "--host", "demo", "--head", "demo", "--data", f"rgbd:{tmp_path}"],
        "bench": ["bench", "config:vit-b-16"],
    }[command]
    with locked_folder(output, TrainingError, "run folder"):
        done = CliRunner().invoke(app, [*words, "-o", str(output)], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert f"process {os.getpid()} on" in done.output
    assert "uses this output folder now" in done.output

"""``clipdepth annotate`` in parts: shards, Ray, and kills at any moment give the same files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import pytest

from clipdepth_plugin.annotating import run as runs
from clipdepth_plugin.annotating.run import annotate
from clipdepth_plugin.annotating.settings import AnnotateJob
from clipdepth_plugin.labelling.shards import Shard
from tests.lerobot.annotating import KEYS, check_depth, job
from tests.lerobot.sets import hashes, make_set

FORK = get_context("fork")  # imports take far longer than what is killed
SCRIPT = Path(__file__).parents[1] / "scripts" / "annotate_on_ray.py"
pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]


def test_shards_in_any_order_give_the_same_files(source: Path, tmp_path: Path) -> None:
    annotate(job(source, tmp_path / "whole"))
    for number in (2, 4, 1):
        assert annotate(job(source, tmp_path / "new", shard=Shard(number, 4)))[1].missing
        assert not (tmp_path / "new").exists()
    assert annotate(job(source, tmp_path / "new", shard=Shard(3, 4)))[1].missing == []
    assert hashes(tmp_path / "new") == hashes(tmp_path / "whole")
    report, joined = annotate(job(source, tmp_path / "new", shard=Shard(3, 4)))  # once more
    assert (report.labelled, report.present, joined.missing) == (0, 15, [])


def test_two_ray_actors_give_the_files_of_one_process(source: Path, tmp_path: Path) -> None:
    annotate(job(source, tmp_path / "whole"))
    command = [sys.executable, str(SCRIPT), str(source), str(tmp_path / "ray")]
    env = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"labelled": 45, "missing": []}
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

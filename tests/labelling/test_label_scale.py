"""Many pictures, and many processes: memory is flat, Ray's actors give the files of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.errors import DataError, SourceError
from clipdepth_plugin.labelling.job import Progress
from clipdepth_plugin.labelling.on_ray import _joined
from clipdepth_plugin.labelling.run import write_labels
from tests.labelling.fake import hashes, job, save_tree

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "scripts"


def script(name: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_is_flat_and_bad_ones_are_named(tmp_path: Path) -> None:
    found = script("label_tars.py", tmp_path, 10, 400, 5)
    assert (found["labelled"], found["bad"]) == (395, 5)
    assert found["end"] < found["early"] + 16


def test_two_ray_actors_give_the_files_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    pics = save_tree(tmp_path / "pics", [f"s{i % 3}/{i:02d}.png" for i in range(20)])
    (pics / "s1" / "04.png").write_bytes(b"x")
    write_labels(job(pics, folder=tmp_path / "one", bad_file_limit=1))
    found = script("label_on_ray.py", pics, tmp_path / "ray", 1)
    assert found == {"labelled": 19, "bad": ["04.png"]}
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "one")


def row(number: int, *, error: str = "", bad: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "shard": number, "error": error, "labelled": 2, "present": 1, "seconds": 1.0,
        "source_seconds": 0.5, "empty": [f"e{number}"], "bad_names": list(bad),
        "bad_reasons": ["damaged"] * len(bad),
    }  # fmt: skip


def test_what_shards_report_is_joined() -> None:
    seen: list[Progress] = []
    rows = [row(1, bad=("a",)), row(2), row(3, bad=("b",))]
    report = _joined(iter(rows), 2, 3, seen.append)
    assert (report.labelled, report.present, report.empty) == (6, 3, ("e1", "e2", "e3"))
    assert report.bad == {"a": "damaged", "b": "damaged"}
    assert seen[-1] == Progress(3, 3, 6, 2)


def test_failed_shards_are_named_after_the_others() -> None:
    rows = [row(1), row(2, error="DataError: shard 2/3: gone"), row(3)]
    seen: list[Progress] = []
    with pytest.raises(SourceError, match=r"(?s)1 of 3 shards failed.*DataError: shard 2/3: gone"):
        _joined(iter(rows), 0, 3, seen.append)
    assert len(seen) == 3
    rows = [row(1, bad=("a",)), row(2, bad=("b",)), row(3)]
    with pytest.raises(
        DataError, match=r"(?s)more than bad_file_limit = 1.*a: damaged.*b: damaged"
    ):
        _joined(iter(rows), 1, 3, seen.append)

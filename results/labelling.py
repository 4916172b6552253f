"""What ``clipdepth label`` must hold at scale: memory, kills, and the teacher's share of the time.

    python results/labelling.py > results/labelling.md

Three minutes on two cores. Pictures and teachers are those of tests/labelling: teachers that cost
nothing, or wait as long as a model on a GPU takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' pictures and teachers

from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.labelling.run import write_labels
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.latency.report import describe, markdown_table
from tests.benchmarks.test_labelling import PICTURES, SECONDS, SIZE, Waiting, save_jpegs
from tests.labelling.fake import hashes, job, save_tree

ROOT = Path(__file__).resolve().parents[1]
SHARDS, STREAMED, BAD = 20, 10_000, 50
KILLS, KILLED = 30, 600
ROUNDS = 3


def script(name: str, *arguments: object) -> str:
    """The last line that a script of tests/scripts prints."""
    command = [sys.executable, str(ROOT / "tests" / "scripts" / name), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return done.stdout.splitlines()[-1]


def streamed(folder: Path) -> str:
    """WebDataset shards with bad pictures."""
    folder.mkdir()
    found: dict[str, Any] = json.loads(script("label_tars.py", folder, SHARDS, STREAMED, BAD))
    return (
        f"{STREAMED} pictures in a WebDataset of {SHARDS} shards, {BAD} of them bad: "
        f"{found['labelled']} labelled, {found['bad']} named, {found['seconds']:.0f} s. Most "
        f"memory of the process after a fifth of the pictures: {found['early']:.0f} MiB; at the "
        f"end: {found['end']:.0f} MiB."
    )


def killed(folder: Path) -> str:
    """A run that is killed again and again, beside one that is not."""
    names = [f"s{index % 3}/{index:03d}.png" for index in range(KILLED)]
    pictures = save_tree(folder / "pictures", names)
    write_labels(job(pictures, folder=folder / "whole"))
    met, code = script("label_killed.py", pictures, folder / "out", KILLS, 0).split()
    same = hashes(folder / "out") == hashes(folder / "whole")
    left = [path for path in (folder / "out").rglob(".*") if path.is_file()]
    return (
        f"{KILLED} pictures, SIGKILL {KILLS} times at random ({met} of them met a run at work), "
        f"and the same call once more (exit code {code}): {'the same' if same else 'OTHER'} files "
        f"as of a run without kills, {len(left)} files left over."
    )


def shares(folder: Path) -> list[tuple[str, str, str]]:
    """The teacher's share of a run's time, in rounds."""
    pictures = save_jpegs(folder / "jpegs")
    rows = []
    for flip in (True, False):
        found = []
        for number in range(ROUNDS):
            one = job(pictures, folder=folder / f"{flip}-{number}", source=Waiting, threads=4)
            one = replace(one, settings=LabelSettings(flip=flip), batch_size=4)
            done = write_labels(one)
            found.append(done.source_seconds / done.seconds)
        what = "with the mirrored picture" if flip else "--no-flip"
        spread = f"{min(found):.3f} to {max(found):.3f}"
        rows.append((what, f"{statistics.median(found):.3f}", spread))
    return rows


def main() -> None:
    """Prints the page."""
    environment = describe_environment(sys.argv, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        held = (streamed(folder / "tars"), killed(folder / "killed"))
        table = markdown_table(("", "median", "all"), shares(folder))
    height, width = SIZE
    how = (
        f"The teacher's share of the time: {PICTURES} JPEGs of {width} x {height}, a teacher that "
        f"waits {SECONDS * 1000:.0f} ms a picture, batches of 4, 4 threads; {ROUNDS} runs. 0.9 or "
        "more is wanted."
    )
    lines = ["# Labelling at scale", *held, how, "\n".join(table), describe(environment)]
    sys.stdout.write("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

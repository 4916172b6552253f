"""Labels pictures, is killed at random again and again, and goes on until it is done.

    python label_killed.py PICTURES FOLDER KILLS SEED

PICTURES is a folder. Prints how many of the KILLS met a run at work, and the exit code of the last
run, which is left alone.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401  (here, so that not every child imports it)

from clipdepth_plugin.labelling.run import write_labels
from tests.labelling.fake import job, slow_source


def started(pictures: Path, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        job_ = job(pictures, folder=folder, source=slow_source, batch_size=2)
        write_labels(job_)
        os._exit(0)
    return child


def main() -> None:
    pictures, folder, kills, seed = sys.argv[1:]
    chance, met = random.Random(int(seed)), 0
    for _ in range(int(kills)):
        child = started(Path(pictures), Path(folder))
        time.sleep(chance.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        met += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    last = os.waitpid(started(Path(pictures), Path(folder)), 0)[1]
    sys.stdout.write(f"{met} {os.waitstatus_to_exitcode(last)}\n")


if __name__ == "__main__":
    main()

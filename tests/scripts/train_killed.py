"""Trains again and again, is killed at one call to the disk after another, and resumes.

    python train_killed.py CONFIG.json CALL...

CONFIG.json holds a config's fields. For each CALL (a number; calls that write, sync and rename are
counted) a run is killed at it with SIGKILL and then resumed, in folders named by the number. Prints
"CALL killed resumed" with the exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import kornia  # noqa: F401  (here, so that not every child imports it)
import torch
from transformers import AutoModel, Dinov2Model  # noqa: F401

from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.engine import train


def kill_at(call: int) -> None:
    counted = [0]

    def watch(name: str) -> None:
        original = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, name, watched)

    for name in ("write", "fsync", "rename", "replace"):
        watch(name)


def in_child(tree: dict[str, Any], *, call: int | None) -> int:
    child = os.fork()
    if child == 0:
        if call is not None:
            kill_at(call)
        train(check_config(tree, "test"), resume=call is None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    tree = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for call in map(int, sys.argv[2:]):
        run = {**tree, "run": f"{tree['run']}-{call}"}
        killed = in_child(run, call=call)
        resumed = in_child(run, call=None)
        sys.stdout.write(f"{call} {killed} {resumed}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

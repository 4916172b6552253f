"""Runs scripts, each in a process forked from one that has imported the libraries once.

    python -W error -m tests.scripts.run_examples '[["a.py", "argument"], ["b.py"]]'

Prints as JSON, for each script, its exit status, what it printed and its errors.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import kornia  # noqa: F401  (these are imported here, so that not every script imports them)
import torch  # noqa: F401
import transformers.models.clip.modeling_clip  # noqa: F401

import clipdepth_plugin.adapters.loading  # noqa: F401


def run(script: str, *arguments: str) -> int:
    """Runs a script as ``python script arguments`` does; its exit status."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (as Python ends: the child must not go on as its parent)
        traceback.print_exc()
        return 1
    return 0


def run_in_child(command: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        with warnings.catch_warnings():
            # Python 3.12 and newer warn of other threads; those of the libraries are idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            status = run(*command)
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (said, errors):
            file.seek(0)
        return status, said.read(), errors.read()


def main() -> None:
    print(json.dumps([run_in_child(command) for command in json.loads(sys.argv[1])]))  # noqa: T201


if __name__ == "__main__":
    main()

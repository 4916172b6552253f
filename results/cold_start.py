"""Cold start: from the start of the process to the first depth map, with torch and without.

python results/cold_start.py FOLDER --host demo --head demo > results/cold_start.md

FOLDER is what ``clipdepth export`` made of that host and head. Each round runs both commands once,
as processes of their own, in turn first; files are in the system's cache.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.report import describe, markdown_table

COMMAND = (sys.executable, "-m", "clipdepth_plugin", "predict")
FIRST_MAP = re.compile(r"first map ([0-9.]+) s after the start")


def seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Of the process until its first map, as it says, and until its end."""
    start = time.perf_counter()
    ran = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    whole = time.perf_counter() - start
    found = FIRST_MAP.search(ran.stderr)
    if ran.returncode or found is None:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{ran.stderr}")
    return float(found[1]), whole


def main() -> None:
    """Measures, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--host", default="demo")
    parser.add_argument("--head", default="demo")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ways = {
        "torch (--host, --head)": ("--host", options.host, "--head", options.head),
        "onnxruntime (--exported)": ("--exported", options.folder),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as made:
        picture = Path(made) / "picture.png"
        random = np.random.default_rng(0)
        Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(picture)
        for index in range(options.rounds + 1):
            for name in sorted(ways, reverse=index % 2 == 1):
                one = seconds([str(picture), *ways[name], "-o", str(Path(made) / "out")])
                if index:  # the first fills the system's cache
                    found[name].append(one)
    cells = [
        (name, *(f"{median(times):.2f}" for times in zip(*found[name], strict=True)))
        for name in ways
    ]
    print("# Cold start\n")
    print(
        f"`clipdepth predict` of one picture of 480 x 640, host {options.host}, head "
        f"{options.head}: medians of {options.rounds} processes each.\n"
    )
    print("\n".join(markdown_table(("", "first map, s", "whole command, s"), cells)))
    command = ("results/cold_start.py", Path(options.folder).name, *sys.argv[2:])
    print(f"\n{describe(describe_environment(command, 'cpu', 'float32'))}")


if __name__ == "__main__":
    main()

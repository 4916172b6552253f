"""Measures on one NVIDIA GPU what the kernels and graphs give, in parts of at most 3 minutes.

    python results/gpu.py                   # all parts, the most valuable first: 8 minutes at most
    python results/gpu.py heads towers      # some; gpu.json keeps the others

Needs no network: hosts and heads have random weights; of packages torch, triton, transformers,
pydantic, einops and pytest. A part begins no case when its time is over, and both files are written
after each, so that a call that is cut short leaves what it has. Several parts run in a process
each; where a kernel breaks the GPU's context, a new one goes on with the next case. A form that
fails or gives other numbers than the plain head in float64 is named and not timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package may not be installed
# The cases of the tests' kernel benchmark; some package may have installed "tests" of its own.
tests = sys.modules.setdefault("tests", ModuleType("tests"))
tests.__path__ = [str(HERE.parent / "tests")]

from gpu_measure import PARTS, Row, Setting  # noqa: E402

from clipdepth_plugin.environment import describe_environment  # noqa: E402
from clipdepth_plugin.files.atomic import write_atomically  # noqa: E402
from clipdepth_plugin.latency.report import markdown_table  # noqa: E402

BROKEN = 3
"""Exit status of a process whose GPU can't be used on."""
ALL = 480.0
"""Seconds of all parts together."""
PATIENCE = 100.0
"""Seconds that a part may take beyond its own, to begin and to end its last case."""
COLUMNS = ("what", "form", "ms", "gain", "added", "error", "note")


def run_part(
    name: str, setting: Setting, seconds: float, rows: list[Row], write: Callable[[], None]
) -> bool:
    """Measures the cases of a part that ``rows`` do not have, until its time is over.

    ``write`` is called after each. Returns False where the GPU
    can't be used on in this process, as after a kernel that read where it may not.
    """
    end = time.monotonic() + seconds
    done = max((row["case"] for row in rows), default=-1) + 1
    for number, case in enumerate(PARTS[name](setting)):
        if number < done:
            continue
        if time.monotonic() > end:
            what = f"{name} from case {number} on"
            rows.append({"case": number, "what": what, "note": "not measured: no time was left"})
            write()
            return True
        try:
            rows += [{"case": number, **row} for row in case()]
        except Exception as problem:  # noqa: BLE001 (compilers and drivers raise anything)
            first = next(iter(str(problem).strip().splitlines()), "")
            what = ", ".join(str(x) for x in case.args if isinstance(x, str | int))
            note = f"FAILED: {type(problem).__name__}: {first}"
            rows.append({"case": number, "what": what, "note": note})
        write()
        torch._dynamo.reset()
        try:
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def to_markdown(report: Mapping[str, Any]) -> str:
    """The page of a report."""
    lines = ["# Kernels and graphs on a GPU", "", "Made by `python results/gpu.py`. Medians, 95%."]
    for name, part in report.items():
        lines += ["", f"## {name}", "", (PARTS[name].__doc__ or "").strip(), ""]
        cells = [[_shown(row.get(column)) for column in COLUMNS] for row in part["rows"]]
        lines += markdown_table(COLUMNS, cells)
        seen = part["environment"]
        lines += ["", f"{seen['gpu'] or seen['cpu']}, {seen['versions']}, {seen['created']}"]
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else "" if value is None else str(value)


def measure(name: str, asked: argparse.Namespace, command: Sequence[str]) -> int:
    """Measures one part; 1 where something failed, ``BROKEN`` where a new process has to go on."""
    setting = Setting(torch.device(asked.device), asked.rounds, asked.tiny)
    environment = describe_environment(command, setting.device, str(setting.dtype)).model_dump()
    file = asked.output / "gpu.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[Row] = report[name]["rows"] if asked.go_on and name in report else []

    def write() -> None:
        report[name] = {"environment": environment, "rows": rows}
        ordered = {part: report[part] for part in PARTS if part in report}
        write_atomically(file, (json.dumps(ordered, indent=1) + "\n").encode())
        write_atomically(asked.output / "gpu.md", to_markdown(ordered).encode())

    if not run_part(name, setting, asked.seconds, rows, write):
        return BROKEN
    return int(any("FAILED" in (row.get("note") or "") for row in rows))


def measure_apart(parts: Sequence[str], asked: argparse.Namespace, options: Sequence[str]) -> int:
    """Each part in a process of its own: one that breaks the GPU's context leaves the others be."""
    failed, ends = 0, time.monotonic() + ALL
    for name in parts:
        go_on: list[str] = []
        status = BROKEN
        while status == BROKEN and (left := ends - time.monotonic()) > 0:
            seconds = str(min(asked.seconds, left))
            # The last --seconds counts.
            command = [sys.executable, __file__, name, *options, "--seconds", seconds, *go_on]
            sys.stderr.write(f"{name}\n")
            try:
                timeout = asked.seconds + PATIENCE
                status = subprocess.run(command, check=False, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"{name} hung: what it has measured is kept\n")
                status = 1
            go_on = ["--go-on"]
        failed = failed or status
    return int(bool(failed))


def main(arguments: Sequence[str]) -> int:
    """Measures the parts; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30, help="8 or more")
    parser.add_argument("--seconds", type=float, default=80, help="of each part; a case may end it")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="a dry run: figures say nothing")
    parser.add_argument("--go-on", action="store_true", help="keep the cases that gpu.json has")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if asked.rounds < 8:
        parser.error("--rounds: a 95% interval of a median needs 8 or more")
    if asked.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {asked.device}: torch {torch.__version__} sees no GPU")
    asked.output.mkdir(parents=True, exist_ok=True)
    parts = asked.parts or [*PARTS]
    if len(parts) == 1:
        return measure(parts[0], asked, ("python", "results/gpu.py", *arguments))
    options = [one for one in arguments if one not in PARTS]
    return measure_apart(parts, asked, options)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Measures on one NVIDIA GPU what the kernels and graphs give, in parts of at most 3 minutes.

    python results/gpu.py                   # all parts, the most valuable first: 8 minutes at most
    python results/gpu.py heads towers      # some; gpu.json keeps the others

Needs no network: hosts and heads have random weights. A part begins no case when its time is over,
and both files are written after each, so that a call that is cut short leaves what it has. A form
that fails or gives other numbers than the plain head in float64 is named and not timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.report import markdown_table

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # the cases of the tests' kernel benchmark

from gpu_measure import PARTS, Row, Setting  # noqa: E402 (it needs them)

COLUMNS = ("what", "form", "ms", "gain", "added", "error", "note")


def run_part(
    name: str, setting: Setting, seconds: float, write: Callable[[list[Row]], None]
) -> None:
    """Measures a part until its time is over; ``write`` is given all rows after each case."""
    rows: list[Row] = []
    end = time.monotonic() + seconds
    for case in PARTS[name](setting):
        if time.monotonic() > end:
            rows.append({"what": f"the rest of {name}", "note": "not measured: no time was left"})
            write(rows)
            return
        try:
            rows += case()
        except Exception as problem:  # noqa: BLE001 (compilers and drivers raise anything)
            first = next(iter(str(problem).strip().splitlines()), "")
            what = str(getattr(case, "args", ("", name))[1:4])
            rows.append({"what": what, "note": f"FAILED: {type(problem).__name__}: {first}"})
        torch._dynamo.reset()
        write(rows)


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


def main(arguments: Sequence[str]) -> int:
    """Measures the parts; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=90, help="of each part; a case may end it")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--tiny", action="store_true", help="a dry run: figures say nothing")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    setting = Setting(torch.device(asked.device), asked.rounds, asked.tiny)
    file = asked.output / "gpu.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    command = ("python", "results/gpu.py", *arguments)
    for name in asked.parts or PARTS:
        seen = describe_environment(command, setting.device, str(setting.dtype)).model_dump()

        def write(rows: list[Row], name: str = name, seen: Any = seen) -> None:
            report[name] = {"environment": seen, "rows": rows}
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            page = asked.output / "gpu.md"
            page.write_text(to_markdown(report), encoding="utf-8")

        sys.stderr.write(f"{name}\n")
        run_part(name, setting, asked.seconds, write)
    ran = [report[name]["rows"] for name in asked.parts or PARTS if name in report]
    return int(any("FAILED" in (row.get("note") or "") for rows in ran for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

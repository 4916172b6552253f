"""The tables of docs/export.md: exports of every host and preset, and what they consist of.

python -m tests.scripts.export_table     # writes them; about ten minutes
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx

from clipdepth_plugin.exporting.export import ExportResult
from clipdepth_plugin.exporting.tensorrt import PARSED, operators
from tests.exporting.hosts import HOSTS, PRESETS, exported, worst_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
COMMAND = ".venv/bin/python -m tests.scripts.export_table"
DTYPES = ("float32", "float16")
Uses = dict[str, set[str]]
"""Operator -> where it is: towers, or the preset of a head."""


def uses_of(folder: Path, preset: str) -> Uses:
    """The operators of an exported folder: what the head alone has not is the tower's."""
    found: Uses = defaultdict(set)
    for name, where in (("head", f"`{preset}`"), ("tower_depth", "towers")):
        for operator in operators(onnx.load(folder / f"{name}.onnx")):
            if name == "head" or f"`{preset}`" not in found[operator]:
                found[operator].add(where)
    return found


def exports() -> Iterator[tuple[str, str, str, ExportResult, Uses]]:
    """Every export, a host at a time."""
    for host in HOSTS:
        for preset in PRESETS:
            for dtype in DTYPES:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary) / "export"
                    result = exported(host, preset, folder, dtype=dtype)
                    yield host, preset, dtype, result, uses_of(folder, preset)
                sys.stderr.write(f"{host} {preset} {dtype}: {worst_of(result):.1e}\n")


def region(page: str, name: str) -> tuple[str, str, str]:
    """The page before a table, the table, and what is behind it."""
    before, begin, rest = page.partition(f"<!-- {name}: written by {COMMAND} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->")
    if not begin or not end:
        raise SystemExit(f"{PAGE}: no comments around the table {name}")
    return before + begin, table, end + after


def markdown(rows: list[list[str]]) -> str:
    """A table; its first row are the headings."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Writes both tables into the page."""
    errors: dict[tuple[str, str, str], float] = {}
    uses: Uses = defaultdict(set)
    for host, preset, dtype, result, found in exports():
        errors[host, preset, dtype] = worst_of(result)
        if result.doubts:
            sys.stderr.write(f"{host} {preset}: {result.doubts}\n")
        for operator, where in found.items():
            uses[operator] |= where
    columns = [(preset, dtype) for preset in PRESETS for dtype in DTYPES]
    verified = [["Host", *(f"`{preset}` {dtype}" for preset, dtype in columns)]]
    for host, title in HOSTS.items():
        verified.append([title, *(f"{errors[host, *column]:.1e}" for column in columns)])
    used = [["Operator", "In", "TensorRT 10"]]
    for operator in sorted(uses):
        parsed = "yes" if operator in PARSED else "no"
        used.append([f"`{operator}`", ", ".join(sorted(uses[operator])), parsed])
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in (("exports", verified), ("operators", used)):
        before, _, after = region(page, name)
        page = f"{before}{markdown(rows)}{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

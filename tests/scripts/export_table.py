"""The tables of docs/export.md: exports of every host and preset, and what they consist of.

python -m tests.scripts.export_table     # writes them; about ten minutes
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from clipdepth_plugin.exporting.graphs import HeadGraph
from clipdepth_plugin.exporting.tensorrt import PARSED, operators
from tests.exporting.hosts import HOSTS, PRESETS, verified_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
COMMAND = ".venv/bin/python -m tests.scripts.export_table"
DTYPES = ("float32", "float16")


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
    uses: dict[str, set[str]] = defaultdict(set)
    for preset, dtype, host in itertools.product(PRESETS, DTYPES, HOSTS):
        of_head: Collection[str] = ()
        with tempfile.TemporaryDirectory() as folder:
            if host == "dinov2":
                head = verified_file(host, preset, dtype, Path(folder), HeadGraph)
                of_head = operators(head.model)
            tower = verified_file(host, preset, dtype, Path(folder))
        errors[host, preset, dtype] = tower.worst
        sys.stderr.write(f"{host} {preset} {dtype}: {tower.worst:.1e} {' '.join(tower.doubts)}\n")
        for operator in {*operators(tower.model), *of_head}:
            uses[operator] |= {f"`{preset}`"} if operator in of_head else set()
    columns = [(preset, dtype) for preset in PRESETS for dtype in DTYPES]
    verified = [["Host", *(f"`{preset}` {dtype}" for preset, dtype in columns)]]
    for host, title in HOSTS.items():
        verified.append([title, *(f"{errors[host, *column]:.1e}" for column in columns)])
    used = [["Operator", "In a head of", "TensorRT 10"]]
    for operator in sorted(uses):
        parsed = "yes" if operator in PARSED else "no"
        heads = ", ".join(sorted(uses[operator])) or "towers alone"
        used.append([f"`{operator}`", heads, parsed])
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in (("exports", verified), ("operators", used)):
        before, _, after = region(page, name)
        page = f"{before}{markdown(rows)}{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

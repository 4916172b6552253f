"""The table of hosts in docs/hosts.md, from the tables that the tests run on.

python -m tests.scripts.host_table     # writes it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import transformers

from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.adapters.trim import plan_trim
from tests.test_original_sizes import CASES
from tests.tiny.case import HostCase
from tests.tiny.packed import EVERY_PACKED
from tests.tiny.packed_case import PackedCase
from tests.tiny.table import HOSTS

README = Path(__file__).resolve().parents[2] / "README.md"
PAGE = README.parent / "docs" / "hosts.md"
EVERY: tuple[HostCase | PackedCase, ...] = (*HOSTS, *EVERY_PACKED)
COMMAND = ".venv/bin/python -m tests.scripts.host_table"
BEGIN, END = f"<!-- hosts: written by {COMMAND} -->", "<!-- end of hosts -->"
_HEADINGS = (
    *("Host", "Tower", "Family", "Contexts", "Token order", "Views", "Trim"),
    *("Tested", "Generate", "Maps"),
)


@dataclass(frozen=True)
class Row:
    """One line: what the tests found of a host."""

    title: str
    cells: tuple[str, ...]


def absent() -> list[str]:
    """Hosts that the installed transformers lacks: without them there is no table."""
    return [case.name for case in EVERY if case.absent]


def build_table() -> str:
    """The table; hosts of one title share a line, with what differs side by side."""
    lines: dict[str, list[list[str]]] = {}
    for row in _rows():
        columns = lines.setdefault(row.title, [[] for _ in row.cells])
        for column, cell in zip(columns, row.cells, strict=True):
            column.extend([] if cell in column else [cell])
    rows = [[title, *map("; ".join, columns)] for title, columns in lines.items()]
    whole = [list(_HEADINGS), ["---"] * len(_HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in whole)


def region(page: str) -> str:
    """The text between the page's two comments."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def count() -> int:
    """How many hosts the tests run."""
    return len({case.name for case in EVERY})


def _rows() -> Iterator[Row]:
    for case in EVERY:
        host = case.host()
        tower = choose_tower(host, getattr(case, "choose", None))
        yield Row(
            case.title,
            (
                f"`{tower.path}`" if tower.path else "itself",
                "by structure" if tower.family == "unknown" else f"`{tower.family}`",
                ", ".join(tower.contexts),
                tower.rule.order,
                _views(case.name),
                "yes" if plan_trim(host, tower).blocks else "no",
                "outputs, levels, places",  # what takes every row of both tables
                "yes" if generates(case) else "-",
                "yes" if any(one.host == case.name for one in CASES) else "-",
            ),
        )


def _views(name: str) -> str:
    """How its own image processor makes views of a picture."""
    kinds = [
        type(rule).__name__
        for case in CASES
        if case.host == name
        for rule in from_processor(getattr(transformers, case.processor)(**case.options)).rules
    ]
    return ", ".join(dict.fromkeys(kinds)) or "-"


def generates(case: HostCase | PackedCase) -> bool:
    """Whether the tests run its ``generate()``."""
    return (case.inputs if isinstance(case, HostCase) else case.prompt) is not None


def main() -> int:
    """Writes the table into the page, and the number of hosts into the README."""
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if absent() or not begin or not end:
        sys.stderr.write(f"absent hosts: {absent()}; or no {BEGIN} and {END} in {PAGE}\n")
        return 1
    PAGE.write_text(f"{before}{begin}\n{build_table()}\n{end}{after}", encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(re.sub(r"(?m)^\d+(?= hosts )", str(count()), readme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

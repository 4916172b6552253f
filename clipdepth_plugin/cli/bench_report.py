"""The report of ``clipdepth bench``: its files, and what is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from clipdepth_plugin.latency.schema import Audit

FILES = ("added_latency.json", "added_latency.md", "added_latency.png")


def write_report(report: Audit, output: Path | None, *, as_json: bool) -> None:
    """Writes the files into ``output``, then the table and the verdict, or JSON, on stdout."""
    from clipdepth_plugin.cli.console import plain_console, print_table
    from clipdepth_plugin.files.atomic import write_atomically
    from clipdepth_plugin.latency.plot import write_plot
    from clipdepth_plugin.latency.report import to_markdown

    # ASCII: any stream can take it, and names of files that are no UTF-8 (of the command) too.
    text_json = json.dumps(report.model_dump(mode="json"), indent=1) + "\n"
    if output is not None:
        for name, text in zip(FILES, (text_json, to_markdown(report)), strict=False):
            write_atomically(output / name, text.encode(errors="backslashreplace"))
        write_plot(output / FILES[-1], report)
    if as_json:
        sys.stdout.write(text_json)
        return
    stdout = plain_console()
    print_table(make_table(report))
    for line in report.verdict:
        stdout.print(line, highlight=False, soft_wrap=True)


def make_table(audit: Audit) -> Table:
    """The audit for a terminal."""
    from rich import box
    from rich.table import Table

    from clipdepth_plugin.latency.report import HEADER, rows

    settings = audit.settings
    table = Table(
        title=f"{audit.host.label}, batch {settings.batch}, {settings.rounds} rounds",
        title_justify="left",
        box=box.SIMPLE,
    )
    for name in HEADER:
        table.add_column(name, justify="left" if name == HEADER[0] else "right", no_wrap=True)
    for figure, cells in zip(audit.figures, rows(audit), strict=True):
        table.add_row(*cells, style="bold" if figure.what == "depth" else "")
    return table

"""Consoles that print names literally: brackets are no markup, colons no emoji."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from clipdepth_plugin.cli.long_work import LongWork


def plain_console(*, stderr: bool = False) -> Console:
    """A console for text with users' names in it; messages on stderr are never wrapped."""
    return Console(stderr=stderr, soft_wrap=stderr, markup=False, emoji=False, highlight=False)


def print_table(table: Table) -> None:
    """Prints a table on stdout, no cell of a ``no_wrap`` column cut or wrapped.

    Where the terminal is too narrow, each row becomes lines of "header: cell". A file is wide
    enough for any table.
    """
    console = plain_console()
    for column in table.columns:
        if column.no_wrap:  # rich takes the longest word for its least width
            texts = (str(column.header), *map(str, column.cells))
            column.min_width = max(map(cell_len, texts))
    least = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    if least <= console.width:
        console.print(table)
    elif not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.size = ConsoleDimensions(least, console.height)
        console.print(table)
    else:
        _print_rows(table, console)


def _print_rows(table: Table, console: Console) -> None:
    for text in (table.title, *_row_lines(table), table.caption):
        if text is not None:
            console.print(text, soft_wrap=True)


def _row_lines(table: Table) -> Iterator[str]:
    headers = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield str(cells[0])
        for header, cell in zip(headers[1:], cells[1:], strict=True):
            if str(cell):
                yield f"  {header}: {cell}"


@contextlib.contextmanager
def loading(console: Console, *names: str) -> Iterator[None]:
    """Says what a command waits for: a spinner on a terminal, else one line."""
    text = Text(f"loading {' and '.join(names)}")  # a status interprets markup in a plain string
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


@contextlib.contextmanager
def bar(
    console: Console, what: str, total: int | None, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Long work of one kind; yields ``advance(count)``, or ``advance(count, total)``."""
    done, of = 0, total

    with LongWork(console, shown=shown) as work:

        def advance(count: int, total: int | None = None) -> None:
            nonlocal done, of
            done, of = done + count, of if total is None else total
            work.at(what, done, of)

        work.at(what, 0, total)
        yield advance

"""Consoles that show names as they are: brackets are no markup in them, colons no emoji."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def plain_console(*, stderr: bool = False) -> Console:
    """A console for text with users' names in it: paths, hosts, data sets."""
    return Console(stderr=stderr, markup=False, emoji=False)


def loading(*names: str) -> Text:
    """What a console's status says while these are loaded; it reads markup in a plain string."""
    return Text(f"loading {' and '.join(names)}")


@contextlib.contextmanager
def bar(
    console: Console, what: str, total: int | None, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """A progress bar; yields a function of (how many more are done, the total where it is new)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int, total: int | None = None) -> None:
            if total is not None:
                progress.update(task, total=total)
            progress.advance(task, count)

        yield advance

"""Consoles that print names literally: brackets are no markup, colons no emoji."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def plain_console(*, stderr: bool = False) -> Console:
    """A console for text with users' names in it; messages on stderr are never wrapped."""
    return Console(stderr=stderr, soft_wrap=stderr, markup=False, emoji=False, highlight=False)


def loading(*names: str) -> Text:
    """The text of a status; ``Text``, as a status interprets markup in a plain string."""
    return Text(f"loading {' and '.join(names)}")


@contextlib.contextmanager
def bar(
    console: Console, what: str, total: int | None, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """A progress bar; yields ``advance(count)``, or ``advance(count, total)`` to set the total."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int, total: int | None = None) -> None:
            if total is not None:
                progress.update(task, total=total)
            progress.advance(task, count)

        yield advance

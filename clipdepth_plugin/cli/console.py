"""Consoles that print names literally: brackets are no markup, colons no emoji."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from clipdepth_plugin.cli.long_work import LongWork


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
    """Long work of one kind; yields ``advance(count)``, or ``advance(count, total)``."""
    done, of = 0, total

    with LongWork(console, shown=shown) as work:

        def advance(count: int, total: int | None = None) -> None:
            nonlocal done, of
            done, of = done + count, of if total is None else total
            work.at(what, done, of)

        work.at(what, 0, total)
        yield advance

"""Consoles that show names as they are: brackets are no markup in them, colons no emoji."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def plain_console(*, stderr: bool = False) -> Console:
    """A console for text with users' names in it: paths, hosts, data sets."""
    return Console(stderr=stderr, markup=False, emoji=False)


def loading(*names: str) -> Text:
    """What a console's status says while these are loaded; it reads markup in a plain string."""
    return Text(f"loading {' and '.join(names)}")

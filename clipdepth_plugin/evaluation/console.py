"""What the two commands share: a progress bar, the device, the folder to write to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipdepth_plugin.errors import DataError


@contextlib.contextmanager
def bar(console: Console, what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar; yields a function of (how many more are done, the total where it is new)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)

        def advance(count: int, total: int | None = None) -> None:
            if total is not None:
                progress.update(task, total=total)
            progress.advance(task, count)

        yield advance


def find_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        DataError: There is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def make_folder(folder: Path) -> None:
    """Makes the folder that ``--output`` names.

    Raises:
        DataError: It can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be made a folder ({error.strerror})") from error

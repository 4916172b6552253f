"""Progress of long work: bars on a terminal, elsewhere a line a minute."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY = 60.0
"""Seconds between lines of progress where there is no terminal."""


class LongWork:
    """Shows how far long work is: bars on a terminal, elsewhere a line a minute.

    A context manager. Nothing is shown before the first ``at``.
    """

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        what, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
        columns = (what, BarColumn(), MofNCompleteColumn(), numbers, TimeRemainingColumn())
        on_terminal = console.is_terminal
        self._console = console
        self._bars = Progress(*columns, console=console) if on_terminal and shown else None
        self._lines = shown and not on_terminal
        self._tasks: dict[str, _Task] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def at(self, what: str, done: int, total: int | None, numbers: str = "") -> None:
        """``done`` of ``total`` of ``what``; ``numbers`` are shown beside them."""
        now, task = monotonic(), self._tasks.get(what)
        if task is None or task.finished or done < task.done:
            # Resumed runs begin in the middle; rate and time left count from there.
            bar = self._bar(what, done, None if task is None else task.bar)
            self._tasks[what] = task = _Task(done, now, now, bar)
        task.done, task.finished = done, done == total
        if self._bars is not None and task.bar is not None:
            self._bars.start()
            self._bars.update(task.bar, completed=done, total=total, numbers=numbers)
        elif self._lines and (now - task.told >= LINE_EVERY or (task.finished and task.lines)):
            task.told, task.lines = now, task.lines + 1
            self._console.print(task.line(what, total, numbers, now))

    def _bar(self, what: str, done: int, before: TaskID | None) -> TaskID | None:
        if self._bars is None:
            return None
        if before is not None:
            self._bars.reset(before, completed=done)
            return before
        return self._bars.add_task(what, total=None, completed=done, numbers="")


@dataclass
class _Task:
    first: int
    began: float
    told: float
    bar: TaskID | None
    done: int = 0
    finished: bool = False
    lines: int = 0

    def line(self, what: str, total: int | None, numbers: str, now: float) -> str:
        """Count, rate, time left and numbers, as text."""
        rate = (self.done - self.first) / max(now - self.began, 1e-9)
        parts = [f"{what}: {self.done}" + ("" if total is None else f" of {total}")]
        parts.append(f"{rate:.3g} a second" if rate >= 1 else f"{rate * 60:.3g} a minute")
        if total is not None and rate > 0:
            parts.append(f"{timedelta(seconds=round((total - self.done) / rate))} left")
        return ", ".join([*parts, *([numbers] if numbers else [])])

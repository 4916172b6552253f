"""Progress of a run, for the command line's progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a run is; the error is of the last validation, the speed since the last report.

    ``abs_rel``, or ``inverse_error`` for a head of relative depth.
    """

    step: int
    total: int
    epoch: int
    loss: float
    learning_rate: float
    images_per_second: float
    abs_rel: float | None
    inverse_error: float | None = None


class Reporter(Protocol):
    """Receives the progress of a run, in the main process only."""

    def doing(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` of something that takes long, before the steps."""

    def step(self, progress: Progress) -> None:
        """A step is finished."""


Doing = Callable[[str, int, int], None]
"""As ``Reporter.doing``."""


def silent(what: str, done: int, total: int) -> None:
    """Ignores the progress."""

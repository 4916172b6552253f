"""Progress of a run, for the command line's progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: Optimiser steps done.
        total: Steps in the whole run.
        epoch: The current epoch, from 0.
        loss: Of the last step.
        learning_rate: Of the last step.
        images_per_second: Over all processes, since the last report.
        abs_rel: Of the last validation, the better of raw and averaged weights.
    """

    step: int
    total: int
    epoch: int
    loss: float
    learning_rate: float
    images_per_second: float
    abs_rel: float | None


class Reporter(Protocol):
    """Receives the progress of a run, in the main process only."""

    def doing(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` of something that takes long, before the steps."""

    def step(self, progress: Progress) -> None:
        """A step is finished."""


Tell = Callable[[str, int, int], None]
"""As ``Reporter.doing``."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""

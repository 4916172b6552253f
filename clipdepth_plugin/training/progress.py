"""What a run tells while it goes on; the command line makes a progress bar of it."""

from __future__ import annotations

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
    """Listens to a run, in the main process only."""

    def doing(self, what: str, done: int, total: int) -> None:
        """Something long before or between the steps: ``done`` of ``total``."""

    def step(self, progress: Progress) -> None:
        """A step was made."""


class Silent:
    """Listens and does nothing."""

    def doing(self, what: str, done: int, total: int) -> None:
        """See ``Reporter``."""

    def step(self, progress: Progress) -> None:
        """See ``Reporter``."""

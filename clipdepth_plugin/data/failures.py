"""Bad files: reported by name, skipped, and counted against a limit."""

from __future__ import annotations

import logging
from typing import NamedTuple

from clipdepth_plugin.errors import DataError

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A sample that could not be read."""

    name: str
    reason: str


class BadFiles:
    """The samples of an epoch that could not be read.

    Attributes:
        reasons: Name -> what was wrong.
    """

    def __init__(self, limit: int) -> None:
        """Allows ``limit`` different samples."""
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def add(self, failures: list[Failure]) -> None:
        """Counts and logs the failures that are new.

        Raises:
            DataError: There are more than the limit; lists all of them.
        """
        for name, reason in failures:
            if name not in self.reasons:
                self.reasons[name] = reason
                logger.warning(
                    "%s can't be read and is replaced (%d of at most %d): %s",
                    *(name, len(self.reasons), self.limit, reason),
                )
        if len(self.reasons) > self.limit:
            raise self.error(f"more than bad_file_limit = {self.limit} samples can't be read")

    def error(self, what: str) -> DataError:
        """An error that lists everything seen so far."""
        listed = "".join(f"\n  {name}: {reason}" for name, reason in self.reasons.items())
        return DataError(f"{what}; repair or remove them, or raise bad_file_limit:{listed}")

"""How samples are read: by threads ahead of their use; bad ones are counted against a limit."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from clipdepth_plugin.errors import DataError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How batches are read.

    Attributes:
        workers: Processes (for streams: threads) that read ahead; 0 reads on demand.
        bad_file_limit: Different samples of an epoch that may be bad, in this process.
        pin_memory: Page-locked memory for a GPU.
    """

    workers: int = 0
    bad_file_limit: int = 0
    pin_memory: bool = False


class Failure(NamedTuple):
    """A sample that could not be read."""

    name: str
    reason: str


class BadFiles:
    """The samples of an epoch that could not be read: name -> what was wrong."""

    def __init__(self, limit: int, instead: str = "replaced") -> None:
        """Allows ``limit`` different samples; ``instead`` is what happens to them."""
        self.limit, self._instead = limit, instead
        self.reasons: dict[str, str] = {}

    def add(self, failures: list[Failure]) -> None:
        """Counts and logs the failures that are new; over the limit, a DataError lists all."""
        for name, reason in failures:
            if name not in self.reasons:
                self.reasons[name] = reason
                logger.warning(
                    "%s can't be used and is %s (%d of at most %d): %s",
                    *(name, self._instead, len(self.reasons), self.limit, reason),
                )
        if len(self.reasons) > self.limit:
            raise self.error(f"more than bad_file_limit = {self.limit} samples can't be used")

    def error(self, what: str) -> DataError:
        """An error that lists everything seen so far."""
        listed = "".join(f"\n  {name}: {reason}" for name, reason in self.reasons.items())
        return DataError(f"{what}; repair or remove them, or raise bad_file_limit:{listed}")


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int
) -> Generator[_R, None, None]:
    """The function of each item, in the items' order; ``ahead`` of them before they are needed.

    The items are taken in the caller's thread. Without threads nothing is computed ahead.
    """
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

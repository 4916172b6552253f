"""map_ahead: results that threads compute before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int
) -> Iterator[_R]:
    """The function of each item, in the items' order.

    Args:
        function: Called in one of the threads.
        items: Taken in the caller's thread.
        threads: 0 computes each result when it is asked for.
        ahead: Results that are computed before they are asked for.
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

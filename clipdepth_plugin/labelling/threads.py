"""Reading beside the predictor: an iterator that a thread runs ahead of its user."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import TypeVar

_T = TypeVar("_T")
_TICK = 0.1


def run_ahead(items: Generator[_T, None, None], ahead: int) -> Generator[_T, None, None]:
    """The items, of which a thread makes ``ahead`` before they are needed.

    An error inside is raised here, in its place. ``items`` is closed at the end, whatever ends it.
    """
    made: queue.Queue[tuple[_T] | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: tuple[_T] | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=_TICK)
                return

    def fill() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put((item,))
                    if stopped.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 (raised again by the user's thread)
            put(error)
        put(None)

    thread = threading.Thread(target=fill, name="label-reader", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        thread.join()

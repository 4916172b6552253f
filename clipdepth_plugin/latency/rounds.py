"""Interleaved rounds: every variant once a round, so that a machine's drift meets all alike.

Each second round runs in the reverse order of the (random) one before it: what rises or falls
steadily cancels between the two, and no variant always follows the same other one.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.timers import Timer

Samples = dict[str, NDArray[np.float64]]
"""Variant -> seconds, one for each round, in the order of the rounds."""


def nothing() -> None:
    """Before and after a variant that needs no preparation."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things compared.

    Attributes:
        name: Names its times.
        call: What is timed.
        before: Prepares each call (puts hooks on), untimed.
        after: Undoes it, untimed, also after an error.
    """

    name: str
    call: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Callable[[], object]]:
        """The call, between ``before`` and ``after``."""
        self.before()
        try:
            yield self.call
        finally:
            self.after()


def run_rounds(
    variants: Sequence[Variant],
    rounds: int,
    timer: Timer,
    *,
    warmup: int = 2,
    seed: int = 0,
    advance: Callable[[], object] = nothing,
) -> Samples:
    """Times the variants, interleaved.

    Args:
        variants: What is compared; their names differ.
        rounds: Timed rounds, each of which runs every variant once.
        timer: Times one call.
        warmup: Untimed calls of each variant before the first round.
        seed: Of the random orders.
        advance: Called after each round, for a progress bar.

    Raises:
        BenchError: No round, or two variants of one name.
    """
    names = [variant.name for variant in variants]
    if rounds < 1 or len(set(names)) != len(names):
        raise BenchError(f"needs a round and names that differ, got {rounds} rounds of {names}")
    warm_up(variants, warmup)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        for order in orders(len(variants), rounds, seed):
            for index in order:
                with variants[index].prepared() as call:
                    seconds[names[index]].append(timer.time(call))
            gc.collect(0)
            advance()
    return {name: np.array(times) for name, times in seconds.items()}


def warm_up(variants: Sequence[Variant], calls: int) -> None:
    """Calls each variant, untimed."""
    for variant in variants:
        for _ in range(calls):
            with variant.prepared() as call:
                call()


def orders(variants: int, rounds: int, seed: int = 0) -> list[list[int]]:
    """The order of the variants in each round: a random one, then the same backwards."""
    draws = np.random.default_rng(seed)
    found: list[list[int]] = []
    for index in range(rounds):
        forward = index % 2 == 0
        found.append(draws.permutation(variants).tolist() if forward else found[-1][::-1])
    return found


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No collection in the middle of a timed call; the young garbage goes between rounds."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

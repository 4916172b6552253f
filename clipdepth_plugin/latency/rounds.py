"""Interleaved rounds: every variant runs once a round, so that drift affects all alike.

Every second round runs in the reverse order of the (random) one before it: a steady drift cancels
between the two, and no variant always follows the same other one.
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
    """Does nothing: the default before, after and between calls."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the calls that are compared.

    Attributes:
        name: Names its times.
        call: What is timed.
        before: Prepares each call (installs hooks), untimed.
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
    for variant in variants:
        for _ in range(warmup):
            with variant.prepared() as call:
                call()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        for order in orders(len(variants), rounds, seed):
            for index in order:
                with variants[index].prepared() as call:
                    seconds[names[index]].append(timer(call))
            gc.collect(0)
            advance()
    return {name: np.array(times) for name, times in seconds.items()}


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
    """Disables automatic collection, which would interrupt a timed call."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

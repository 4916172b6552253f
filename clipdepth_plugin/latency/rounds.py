"""Interleaved rounds: every variant runs once a round, so that drift affects all alike.

Every second round runs in the reverse order of the (random) one before it: a steady drift cancels
between the two, and no variant always follows the same other one.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from clipdepth_plugin.errors import BenchError

Samples = dict[str, NDArray[np.float64]]
"""Variant -> seconds, one for each round, in the order of the rounds."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, until everything that it started is done."""


def wall_timer(
    now: Callable[[], float] = time.perf_counter, synchronise: Callable[[], object] = lambda: None
) -> Timer:
    """Wall-clock time, in seconds, from an idle device to an idle device."""

    def seconds(call: Callable[[], object]) -> float:
        synchronise()
        start = now()
        call()
        synchronise()
        return now() - start

    return seconds


def cuda_timer(device: torch.device) -> Timer:
    """Time between two CUDA events on the current stream.

    The first event is recorded on an idle stream, so that launching counts as far as the GPU
    waits for it. Work on other streams counts if the current one waits for it.
    """

    def seconds(call: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            milliseconds: float = start.elapsed_time(end)
            return milliseconds / 1000.0

    return seconds


def timer_for(device: torch.device | str) -> Timer:
    """CUDA events on a GPU, the wall clock elsewhere, synchronised on other accelerators."""
    device = torch.device(device)
    if device.type == "cuda":
        return cuda_timer(device)
    if device.type == "cpu":
        return wall_timer()
    return wall_timer(synchronise=torch.accelerator.synchronize)


def nothing() -> None:
    """Does nothing: the default before, after and between calls."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the calls that are compared; ``before`` and ``after`` each call are not timed."""

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
    """Times every variant once a round, after ``warmup`` untimed calls of each.

    ``advance`` is called after each round, for a progress bar.
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

"""Timers: how long one call takes, by the CPU's clock or by the GPU's events."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, until everything that it started is done."""


def wall_timer(
    now: Callable[[], float] = time.perf_counter, synchronise: Callable[[], object] = lambda: None
) -> Timer:
    """Wall-clock time, from an idle device to an idle device.

    Args:
        now: The clock, in seconds.
        synchronise: Waits for the device; nothing on the CPU.
    """

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

"""Timers: how long one call takes, on the CPU's clock or on the GPU's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

_CYCLES = 2e9
"""A GPU's clock in a second, about: a slower one sleeps longer."""


class Timer(Protocol):
    """Times one call."""

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that ``call`` takes, until all that it started is done."""
        ...


@dataclass(frozen=True, slots=True)
class WallTimer:
    """Wall-clock time.

    Attributes:
        now: The clock, in seconds; tests give one of their own.
        synchronise: Waits for what the calls started; nothing on the CPU.
    """

    now: Callable[[], float] = time.perf_counter
    synchronise: Callable[[], object] = lambda: None

    def time(self, call: Callable[[], object]) -> float:
        """Seconds from an idle device to an idle device."""
        self.synchronise()
        start = self.now()
        call()
        self.synchronise()
        return self.now() - start


@dataclass(frozen=True, slots=True)
class CudaTimer:
    """Time between two CUDA events on the current stream, the device being idle before.

    The first event is recorded by an idle stream, so that launching counts as far as the GPU
    waits for it. Work on other streams counts if the current one waits for it.

    Attributes:
        device: The GPU.
        busy: Seconds for which the GPU is first given something else to do: what is launched in
            them waits for it, so that launching is hidden. Beside a host that is far ahead of its
            GPU it is so.
    """

    device: torch.device
    busy: float = 0.0

    def time(self, call: Callable[[], object]) -> float:
        """Seconds between the events."""
        with torch.cuda.device(self.device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            if self.busy > 0:
                torch.cuda._sleep(int(self.busy * _CYCLES))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            milliseconds: float = start.elapsed_time(end)
            return milliseconds / 1000.0


def timer_for(device: torch.device | str) -> Timer:
    """CUDA events on a GPU, the wall clock elsewhere; other accelerators are waited for."""
    device = torch.device(device)
    if device.type == "cuda":
        return CudaTimer(device)
    if device.type == "cpu":
        return WallTimer()
    return WallTimer(synchronise=torch.accelerator.synchronize)

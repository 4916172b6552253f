"""Timers: when they synchronise; CUDA's order of events without a GPU, and with one."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from clipdepth_plugin.latency.resources import peak_bytes
from clipdepth_plugin.latency.rounds import timer_for, wall_timer


def test_the_wall_clock_starts_and_stops_with_an_idle_device() -> None:
    seen: list[str] = []

    def now() -> float:
        seen.append("clock")
        return float(len(seen))

    timer = wall_timer(now=now, synchronise=lambda: seen.append("idle"))
    timer(lambda: seen.append("call"))
    assert seen == ["idle", "clock", "call", "idle", "clock"]


class FakeEvent:
    """An event that records the order of calls."""

    seen: list[str]

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.seen.append("record")

    def elapsed_time(self, end: FakeEvent) -> float:
        self.seen.append("elapsed")
        return 2.5


def test_cuda_events_enclose_the_call_on_an_idle_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    FakeEvent.seen = seen
    fakes: dict[str, Any] = {
        "Event": FakeEvent,
        "synchronize": lambda: seen.append("idle"),
        "device": lambda _: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    timer = timer_for("cuda:0")
    assert timer(lambda: seen.append("call")) == 0.0025  # CUDA gives milliseconds
    assert seen == ["idle", "record", "call", "record", "idle", "elapsed"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_longer_kernel_takes_longer_on_the_gpu() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    timer = timer_for("cuda")
    timer(lambda: x @ x)
    assert 0 < timer(lambda: x @ x) < timer(lambda: [x @ x for _ in range(20)])
    assert peak_bytes(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20

"""Peak memory of a call on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipdepth_plugin.latency import memory
from clipdepth_plugin.latency.memory import peak_bytes

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak needs Linux")
def test_the_peak_is_that_of_the_call_also_when_it_runs_again() -> None:
    for _ in range(2):
        peak = peak_bytes(lambda: torch.ones(64 * MIB // 4).sum())
        assert peak is not None
        assert 60 * MIB < peak < 72 * MIB
    nothing = peak_bytes(lambda: None)
    assert nothing is not None
    assert nothing < 2 * MIB


def test_where_it_cannot_be_read_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR", Path("/not/there"))
    assert peak_bytes(lambda: None) is None


def test_an_unknown_device_has_none() -> None:
    assert peak_bytes(lambda: None, "meta") is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="glibc is Linux's")
def test_a_process_that_keeps_freed_memory_faults_once_only() -> None:
    """In a process of its own, as it lasts; without it every pass below faults anew."""
    program = """
import resource, sys, torch
from clipdepth_plugin.latency.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    return [torch.ones(1 << 18) for _ in range(40)]  # 1 MiB each
for _ in range(3):
    work()
before = faults()
for _ in range(3):
    work()
print(faults() - before)
"""

    def count(how: str) -> int:
        # By default the threshold depends on earlier frees; here each MiB is the system's.
        settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(
            [sys.executable, "-c", program, how],
            capture_output=True,
            text=True,
            check=True,
            env=settings,
        )
        return int(done.stdout)

    assert count("keep") < 1_000 < count("give back")

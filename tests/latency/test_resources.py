"""Peak memory of a call on the CPU, and how the report shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipdepth_plugin.latency import resources
from clipdepth_plugin.latency.report import rows
from clipdepth_plugin.latency.resources import peak_bytes, peak_mib
from clipdepth_plugin.latency.rounds import Variant
from tests.tiny.audits import TOWER, an_audit

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak needs Linux")
def test_the_peak_is_the_same_when_a_call_runs_again() -> None:
    for _ in range(2):
        peak = peak_bytes(lambda: torch.ones(64 * MIB // 4).sum())
        assert peak is not None
        assert 60 * MIB < peak < 72 * MIB
    nothing = peak_bytes(lambda: None)
    assert nothing is not None
    assert nothing < 2 * MIB


def test_where_it_cannot_be_read_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_CLEAR", Path("/not/there"))
    assert peak_bytes(lambda: None) is None
    assert peak_mib([Variant("a", lambda: None)], torch.device("cpu")) == {"a": None}


def test_peaks_are_medians_of_interleaved_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"a": iter((100, 100, 113)), "b": iter((107, 160, 107))}
    monkeypatch.setattr(resources, "peak_bytes", lambda call, _: MIB * next(peaks[call()]))
    variants = [Variant("a", lambda: "a"), Variant("b", lambda: "b")]
    assert peak_mib(variants, torch.device("cpu")) == {"a": 100.0, "b": 107.0}


@pytest.mark.parametrize(("noise", "cell"), [(13.0, "below noise (13.0)"), (1.0, "7.0")])
def test_memory_below_the_noise_floor_is_reported_as_such(noise: float, cell: str) -> None:
    audit = an_audit({"small": TOWER / 10}, memory_mib=7.0)
    peaks = {"tower alone": 100.0 + noise, "tower again": 100.0}
    figures = [f.model_copy(update={"peak_mib": peaks.get(f.name)}) for f in audit.figures]
    cells = {row[0]: row[5] for row in rows(audit.model_copy(update={"figures": tuple(figures)}))}
    assert cells == {"tower alone": "", "tower again": "", "tower + small, eager": cell}


def test_an_unknown_device_has_none() -> None:
    assert peak_bytes(lambda: None, "meta") is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="glibc is Linux's")
def test_a_process_that_keeps_freed_memory_faults_once_only() -> None:
    """In a process of its own, as it lasts; without it every pass below faults anew."""
    program = """
import resource, sys, torch
from clipdepth_plugin.latency.resources import keep_freed_memory
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

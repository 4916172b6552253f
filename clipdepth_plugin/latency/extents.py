"""Memory and operations of a call: what of a variant does not come from its times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

from clipdepth_plugin.latency.bases import Base
from clipdepth_plugin.latency.flops import count_gflops
from clipdepth_plugin.latency.memory import peak_bytes
from clipdepth_plugin.latency.plan import Entry

_MEMORY_CALLS = 5
"""Calls of each variant for its peak memory, which on a CPU differs from call to call."""


class Extent(NamedTuple):
    """Peak memory in MiB of each of several calls and operations in 1e9 of one, where known."""

    mib: tuple[float, ...] | None
    gflops: float | None

    @property
    def peak_mib(self) -> float | None:
        """The median."""
        return None if self.mib is None else median(self.mib)

    def above(self, other: Extent) -> tuple[float, ...] | None:
        """Differences in MiB, call by call."""
        if self.mib is None or other.mib is None:
            return None
        return tuple(own - base for own, base in zip(self.mib, other.mib, strict=True))


def measure_extents(entries: Sequence[Entry], device: torch.device) -> dict[str, Extent]:
    """Interleaved, as times are: what a process holds changes from call to call."""
    peaks: dict[str, list[int | None]] = {entry.variant.name: [] for entry in entries}
    for _ in range(_MEMORY_CALLS):
        for entry in entries:
            with entry.variant.prepared() as call:
                peaks[entry.variant.name].append(peak_bytes(call, device))
    found = {}
    for entry in entries:
        read = [peak / 2**20 for peak in peaks[entry.variant.name] if peak is not None]
        mib = tuple(read) if len(read) == _MEMORY_CALLS else None
        found[entry.variant.name] = Extent(mib, _gflops(entry))
    return found


def _gflops(entry: Entry) -> float | None:
    # What is compiled or fused does the same work, hidden from the counter.
    if entry.form not in (None, "eager") or entry.what == "control":
        return None
    with entry.variant.prepared() as call:
        return count_gflops(call)


def memory_noise(extents: Mapping[str, Extent], bases: Sequence[Base]) -> dict[str, float]:
    """Base -> the largest difference in MiB of its peak from itself, where that is known."""
    pairs = {b.scope: (extents[f"{b.scope} again"], extents[f"{b.scope} alone"]) for b in bases}
    found = {scope: again.above(alone) for scope, (again, alone) in pairs.items()}
    return {scope: max(map(abs, mib)) for scope, mib in found.items() if mib is not None}

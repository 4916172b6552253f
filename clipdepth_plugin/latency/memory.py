"""Peak memory of one call: the device allocator's, or the process's resident set."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that a call needs at its peak, above what is held before it.

    Args:
        call: Called once; it should have run before, so that nothing is loaded or compiled in it.
        device: Where it computes.

    Returns:
        On CUDA by the allocator; on the CPU by the resident set, to a page, which counts memory
        that was written to and not what stays reserved. None where neither can be read.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _cuda_peak(call, device)
    return _resident_peak(call) if device.type == "cpu" else None


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(call: Callable[[], object]) -> int | None:
    """Linux: the kernel keeps the peak, and starts it anew when told 5 (proc(5))."""
    # The allocator gives back what it keeps for later; else the call would find it there already.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5", encoding="ascii")
        before = _status("VmRSS")
    except (OSError, KeyError):
        return None
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise KeyError(field)

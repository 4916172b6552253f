"""Peak memory of one call: the device allocator's, or the process's resident set."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 2**25)
"""mallopt(3): the options' numbers and the largest values that they take."""


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
    with contextlib.suppress(OSError, AttributeError, TypeError):
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


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep what is freed, for the rest of the process.

    By default it gives memory back to the system above a threshold that earlier calls have set, so
    that one variant of an interleaved run pays page faults for what another one freed (10% of a
    ViT-B/16's time). For a process that only measures; allocations of 32 MiB or more are the
    system's still.

    Returns:
        Whether the allocator took it: False where it is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no such library
        return False
    return all(mallopt(*option) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))

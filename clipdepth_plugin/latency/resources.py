"""Peak memory, operations and parameters: what a call needs beside time."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipdepth_plugin.latency.rounds import Variant

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 2**25)
"""mallopt(3): the options' numbers and their largest values."""
_CALLS = 3
"""Calls of each variant for its peak memory, which varies from call to call on a CPU."""


def peak_mib(variants: Sequence[Variant], device: torch.device) -> dict[str, float | None]:
    """Variant -> MiB that a call needs at its peak, the median of interleaved calls, or None."""
    peaks: dict[str, list[int | None]] = {variant.name: [] for variant in variants}
    for _ in range(_CALLS):
        for variant in variants:
            with variant.prepared() as call:
                peaks[variant.name].append(peak_bytes(call, device))
    known = {name: [x for x in found if x is not None] for name, found in peaks.items()}
    return {name: median(found) / 2**20 if found else None for name, found in known.items()}


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that a call needs at its peak, above what is allocated before it.

    On CUDA by the allocator; on a Linux CPU by the resident set, to a page. None elsewhere. The
    call should have run before, so that nothing is loaded or compiled in it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident_peak(call) if device.type == "cpu" else None


def _resident_peak(call: Callable[[], object]) -> int | None:
    """By the kernel's high-water mark, which writing 5 resets (proc(5))."""
    # Returns freed memory to the system: the call would otherwise reuse it and seem to need none.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5", encoding="ascii")
        before = _status("VmRSS")
    except OSError:
        return None
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return 1024 * int(found[1])


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep freed memory, for the rest of a process that only measures.

    By default it returns memory to the system above a threshold that earlier calls have set, so
    that one variant of an interleaved run pays page faults for what another one freed (10% of a
    ViT-B/16's time). Returns False where the allocator is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no such library
        return False
    return all(mallopt(*option) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


def count_gflops(call: Callable[[], object]) -> float | None:
    """Floating-point operations of a call in 1e9, a multiply-add being two.

    By torch's counter: matrix products and convolutions, no element-wise operations. None where the
    counter fails on a call that runs without it, as on views of parameters (Idefics2).
    """
    # The counter knows attention on every device only where it is written out as products.
    counter = FlopCounterMode(display=False)
    try:
        with counter, sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
            call()
    except (AssertionError, RuntimeError) as error:
        logger.info("operations are not counted (%s: %s)", type(error).__name__, error)
        return None
    return int(counter.get_total_flops()) / 1e9


def count_parameters(module: nn.Module) -> int:
    """Numbers in the parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())

"""In which dtype a part of a pass computes, whoever calls, and which one a processor knows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """In the dtypes of the weights: whoever calls may be under an autocast of the host's own."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def imitates_bfloat16(device: torch.device) -> bool:
    """Whether the processor has no instructions for bfloat16, so that float32 is far faster.

    Said of a CPU only, and where torch tells its features, which older releases do not.
    """
    tell = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or tell is None:
        return False
    of_bfloat16 = [has for name, has in tell().items() if "bf16" in name]
    return bool(of_bfloat16) and not any(of_bfloat16)

"""The dtype that a part of a pass computes in: without autocast, and bfloat16 on CPUs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Computes in the dtypes of the weights, also where the caller is under an autocast."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def imitates_bfloat16(device: torch.device) -> bool:
    """Whether a CPU has no instructions for bfloat16, so that float32 is far faster.

    False for other devices and for torch releases that do not report a CPU's features.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return False
    of_bfloat16 = [has for name, has in capabilities().items() if "bf16" in name]
    return bool(of_bfloat16) and not any(of_bfloat16)

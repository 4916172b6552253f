"""The dtype that a part of a pass computes in, and which dtypes a processor supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Turns off an autocast that the caller, or its host, has entered."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def imitates_bfloat16(device: torch.device) -> bool:
    """Whether a CPU has no instructions for bfloat16, so that float32 is far faster.

    False for other devices and for torch releases that do not report a CPU's features.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return False
    of_bfloat16 = [has for name, has in capabilities().items() if "bf16" in name]
    return bool(of_bfloat16) and not any(of_bfloat16)

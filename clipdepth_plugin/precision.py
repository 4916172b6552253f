"""In which dtype a part of a pass computes, whoever calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """In the dtypes of the weights: whoever calls may be under an autocast of the host's own."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield

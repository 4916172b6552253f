"""The device that a command's option names."""

from __future__ import annotations

import torch

from clipdepth_plugin.errors import DataError, shortened


def find_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        DataError: There is none.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).add(1).item()  # meta, for one, computes nothing
    except Exception as error:  # devices of other packages raise almost anything
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        there = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        usable = "cpu" if there is None else f"cpu, {there.type}"
        raise DataError(
            f"--device {shortened(name)}: nothing can be computed there "
            f"({shortened(first, 200)}); this machine has {usable}"
        ) from error
    return device

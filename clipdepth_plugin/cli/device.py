"""The device that a command's option names."""

from __future__ import annotations

import torch

from clipdepth_plugin.errors import DataError


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
        shown = name if name.isprintable() else ascii(name)
        raise DataError(
            f"--device {shown}: nothing can be computed there ({first[:200]}); this machine has "
            f"{usable}"
        ) from error
    return device

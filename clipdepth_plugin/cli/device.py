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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device

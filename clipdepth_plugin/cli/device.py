"""What a command's options name: the device, the output folder."""

from __future__ import annotations

from pathlib import Path

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


def make_folder(folder: Path) -> None:
    """Makes the folder that ``--output`` names.

    Raises:
        DataError: It can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be made a folder ({error.strerror})") from error

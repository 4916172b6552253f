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


def make_folder(folder: Path) -> None:
    """Makes the folder that ``--output`` names.

    Raises:
        DataError: It can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be made a folder ({error.strerror})") from error

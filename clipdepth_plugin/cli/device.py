"""What a command's options name: the device, the output folder, the host's preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clipdepth_plugin.errors import DataError, HostError

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.loading import LoadedHost
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.adapters.towers import Tower


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


def preprocessing_of(host: LoadedHost, tower: Tower) -> Preprocessing:
    """How pictures are prepared: as the host's own processor says, or as its tower does.

    Raises:
        HostError: Neither is known.
    """
    known = host.preprocessing or tower.preprocessing
    if known is None:
        raise HostError(
            f"host {host.name!r} does not say how its pictures are normalised; give a "
            "folder that has a preprocessor_config.json (mean, std, size)"
        )
    return known

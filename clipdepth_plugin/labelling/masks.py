"""The user's masks: which pixels of each picture count.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.opening import opened


class Masks:
    """A folder with a grey ``<sequence>/<frame>.png`` for each picture."""

    def __init__(self, folder: str | None) -> None:
        """None: every pixel counts."""
        self._folder = None if folder is None else Path(folder)

    def __call__(self, name: str, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The pixels of a picture ``<sequence>/<frame>`` of ``size`` that count.

        Raises:
            DataError: It has no mask, or one of another size.
        """
        if self._folder is None:
            return None
        path = self._folder / f"{name}.png"
        with opened(path, str(path), DataError, wanted="give a grey PNG") as image:
            mask_HW: NDArray[Any] = np.asarray(image)
        if mask_HW.shape != tuple(size):
            raise DataError(
                f"{path}: has shape {mask_HW.shape}, expected one value for each of the picture's "
                f"{size} pixels (height, width), 0 where it is to be left out"
            )
        return np.asarray(mask_HW != 0)

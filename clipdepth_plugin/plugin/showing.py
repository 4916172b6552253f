"""The depth of a tower pass as one picture to look at.

Axes: H W a map's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.files.turbo import beside
from clipdepth_plugin.maps.alignment import inverse_of

_WIDEST = 1600
"""Pixels of a notebook's page."""


class _Reading(Protocol):
    @property
    def depths(self) -> list[Tensor]: ...

    def predict(self, *, original_sizes: Sequence[Size]) -> Tensor | list[Tensor]: ...


def shown(reading: _Reading, images: Any, *, metric: bool) -> Image.Image:
    """What ``DepthReading.show`` says; ``metric``: whether depth is in metres."""
    pictures = _pictures(images)
    if pictures is None:
        maps = reading.depths
    else:
        found = reading.predict(original_sizes=[(one.height, one.width) for one in pictures])
        maps = list(found)
    rows = []
    for index, map_1HW in enumerate(maps):
        depth_HW = map_1HW[0].cpu()
        map_HW = depth_HW.numpy() if metric else inverse_of(depth_HW).numpy()
        image_HW3 = None if pictures is None else np.asarray(pictures[index].convert("RGB"))
        row = Image.fromarray(beside(image_HW3, map_HW, inverse=not metric))
        row.thumbnail((_WIDEST, _WIDEST))
        rows.append(row)
    sheet = Image.new("RGB", (max(one.width for one in rows), sum(one.height for one in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _pictures(images: Any) -> list[Image.Image] | None:
    if images is None:
        return None
    pictures = [images] if isinstance(images, Image.Image) else images
    if not isinstance(pictures, Sequence) or not all(
        isinstance(one, Image.Image) for one in pictures
    ):
        raise HostError(f"images: got {quoted(images)}, expected pictures (PIL.Image), or a list")
    return list(pictures)

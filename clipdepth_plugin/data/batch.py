"""Batch: what a training step takes.

Axes: B samples, H W pixels of the tower's input or of the depth map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Batch:
    """Views of B samples.

    Attributes:
        pixels_B3HW: float32, normalised as the tower takes it, at ``preprocessing.size``.
        depth_B1HW: float32 metres at the output size asked for; 0 = invalid.
        intrinsics_B4: float32 (fx, fy, cx, cy) in pixels of the tower's input (not of the depth
            map, which covers the same view in its own size); rows of NaN where not known.
        names: B names.
        indices_B: int64, index in the (concatenated) data set. Where a bad file was replaced it
            is that of the sample that is really here; in a stream, the place in the stream.
    """

    pixels_B3HW: Tensor
    depth_B1HW: Tensor
    intrinsics_B4: Tensor
    names: list[str]
    indices_B: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, as torch's loader asks for it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {
            one.name: change(value)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **changed)

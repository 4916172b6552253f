"""RecordLayout: where tokens, pixels, context, depth and camera are in one record of a token cache.

Axes: B records, K bytes of a record, L levels, N tokens, D width, H W a map's size, E entries of
tokens and pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.features import TowerFeatures

_ALIGNMENT = 64


@dataclass(frozen=True)
class RecordLayout:
    """Where things are inside a record.

    Attributes:
        levels: The tower's levels, in order.
        grid: Patch grid (h, w).
        width: D.
        has_context: Whether a context vector is kept.
        size: (H, W) of the depth.
        dtype: Of the tokens and pixels; everything else is float32.
        pixel_size: (H, W) of the tower's pixels, for heads that read them; None keeps none.
    """

    levels: tuple[int, ...]
    grid: tuple[int, int]
    width: int
    has_context: bool
    size: tuple[int, int]
    dtype: torch.dtype
    pixel_size: tuple[int, int] | None = None

    @property
    def entries(self) -> tuple[int, int]:
        """Numbers that tokens and pixels are."""
        tokens = len(self.levels) * math.prod(self.grid) * self.width
        return tokens, 0 if self.pixel_size is None else 3 * math.prod(self.pixel_size)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Bytes of tokens with pixels, context, depth and intrinsics."""
        tokens = sum(self.entries) * self.dtype.itemsize
        context = 4 * self.width * self.has_context
        return -(-tokens // _ALIGNMENT) * _ALIGNMENT, context, 4 * math.prod(self.size), 16

    @property
    def record_bytes(self) -> int:
        """Bytes from one record to the next."""
        return -(-sum(self.sizes) // _ALIGNMENT) * _ALIGNMENT

    def pack(self, features: TowerFeatures, depth_B1HW: Tensor, intrinsics_B4: Tensor) -> Tensor:
        """Records (B, record_bytes) uint8 on the CPU.

        Args:
            features: Holds at least ``levels``, and the pixels where they are kept.
            depth_B1HW: Metres.
            intrinsics_B4: NaN where not known.
        """
        tokens = [features.levels[level] for level in self.levels]
        in_dtype = [torch.stack(tokens, dim=1).flatten(1)]
        if self.pixel_size is not None:
            assert features.pixels is not None
            in_dtype.append(features.pixels.flatten(1))
        context = features.context if self.has_context else None
        parts = [torch.cat(in_dtype, dim=1), context, depth_B1HW, intrinsics_B4]
        record = torch.zeros(features.batch, self.record_bytes, dtype=torch.uint8)
        start = 0
        for x, room in zip(parts, self.sizes, strict=True):
            if x is not None:
                x_B = x.flatten(1).cpu().to(self.dtype if start == 0 else torch.float32)
                data = x_B.contiguous().view(torch.uint8)
                record[:, start : start + data.shape[1]] = data
            start += room
        return record

    def unpack(self, record_BK: Tensor) -> tuple[TowerFeatures, Tensor, Tensor]:
        """Features, depth (B, 1, H, W) and intrinsics (B, 4): views into the records."""
        tokens, context, depth, _ = self.sizes
        count = sum(self.entries) * self.dtype.itemsize
        tokens_BE, pixels_BE = record_BK[:, :count].view(self.dtype).split(self.entries, dim=1)
        tokens_BLND = tokens_BE.unflatten(1, (len(self.levels), -1, self.width))
        pixels_B3HW = (
            None if self.pixel_size is None else pixels_BE.unflatten(1, (3, *self.pixel_size))
        )
        start = tokens
        floats = record_BK[:, start : start + sum(self.sizes[1:])].view(torch.float32)
        context_BD = floats[:, : context // 4] if self.has_context else None
        depth_B1HW = floats[:, context // 4 : (context + depth) // 4].unflatten(1, (1, *self.size))
        levels = {level: tokens_BLND[:, i] for i, level in enumerate(self.levels)}
        features = TowerFeatures(levels, context_BD, self.grid, pixels_B3HW)
        return features, depth_B1HW, floats[:, (context + depth) // 4 :]

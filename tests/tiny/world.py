"""Made-up videos whose true depth is known: what is seen is a window of a world.

Axes: D width of a token, H W a map's size, (h, w) patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.stabilising import Stabiliser

GRID = (8, 8)
UP = 4
"""Native pixels of a patch's side."""
NOISE = 0.1
"""Of a frame's scale, and of each patch's own error, in log depth."""
WIDTH = 128


class World:
    """Cells with tokens and a depth each; a camera sees a window of them."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.tokens = self.normal(24, 24, WIDTH)
        self.log_depth = self.normal(24, 24) * 0.5 + 0.7

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def seen(self, row: int = 8, column: int = 8) -> tuple[Tensor, Tensor]:
        """Tokens (h, w, D) and log depth (h, w) in the window at this cell."""
        window = slice(row, row + GRID[0]), slice(column, column + GRID[1])
        return self.tokens[window].clone(), self.log_depth[window].clone()

    def predicted(self, log_depth_hw: Tensor) -> Tensor:
        """What a head gives: another scale and other errors in each frame."""
        errors_hw = NOISE * (self.normal(1) + self.normal(*GRID))
        return whole(log_depth_hw + errors_hw)

    def noisy(self, tokens_hwD: Tensor) -> Tensor:
        return tokens_hwD + 0.1 * self.normal(*tokens_hwD.shape)


def whole(log_depth_hw: Tensor) -> Tensor:
    """(1, 1, H, W) metres."""
    return log_depth_hw.exp().repeat_interleave(UP, 0).repeat_interleave(UP, 1)[None, None]


def patches(depth_11HW: Tensor) -> Tensor:
    """(h, w) log depth in the middle of patches, where no neighbour's correction reaches."""
    middle = depth_11HW[0, 0].unflatten(0, (GRID[0], UP)).unflatten(2, (GRID[1], UP))
    log_hw: Tensor = middle.log()[:, 1:3, :, 1:3].mean(dim=(1, 3))
    return log_hw


def push(stabilise: Stabiliser, depth_11HW: Tensor, tokens_hwD: Tensor) -> Tensor:
    log_scale = torch.full_like(depth_11HW, NOISE).log()
    return stabilise(depth_11HW, log_scale, signatures(tokens_hwD.flatten(0, 1)), GRID)


def steps(errors: list[Tensor]) -> float:
    """Mean change of the error from frame to frame, after the first five."""
    changes = torch.stack(errors[5:]).diff(dim=0).abs()
    return float(changes.nanmean())

"""The image stem: edges that no patch token holds, from the tower's own input pixels.

A token says what is in a patch, not where in it an edge runs. The stem looks at the pixels in
blocks of 4 x 4 (a block is a position at 4 times the grid, 16 of them make a patch), so that it
costs no pass at full size, and joins the compact decoder where that predicts depth and, as in
RAFT, how each of a block's 16 sub-positions mixes its neighbours' depths.

Axes: B views, C channels, H W pixels, h w the patch grid.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.blocks import ConvNormGELU, resize
from clipdepth_plugin.config import NormKind

BLOCK = 4
"""Pixels of a block's side, where a patch has 16."""


class ImageStem(nn.Module):
    """Pixels to C channels at 4 times the patch grid."""

    def __init__(self, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.first = ConvNormGELU(3 * BLOCK**2, channels, norm)
        self.second = ConvNormGELU(channels, channels, norm)

    def forward(self, pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) as the tower takes them -> (B, C, 4h, 4w).

        Pixels of other patch sizes than 16 are first resized to 16 for each patch.
        """
        even_B3HW = resize(pixels_B3HW, (16 * grid[0], 16 * grid[1]))
        # Not pixel_unshuffle, which does nothing to an empty batch.
        blocks_BCHW = rearrange(even_B3HW, "b c (h y) (w x) -> b (c y x) h w", y=BLOCK, x=BLOCK)
        x_BCHW: Tensor = self.second(self.first(blocks_BCHW))
        return x_BCHW


class Guidance(nn.Module):
    """Joins the stem's map with the decoder's: Conv - norm - GELU of both, twice, added."""

    def __init__(self, channels: int, stem_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.stem = ImageStem(stem_channels, norm)
        self.join = ConvNormGELU(channels + stem_channels, channels, norm)
        self.smooth = ConvNormGELU(channels, channels, norm)

    def forward(self, x_BCHW: Tensor, pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, C, 4h, 4w) -> the same, knowing where the edges run."""
        image_BCHW = self.stem(pixels_B3HW, grid)
        guided: Tensor = x_BCHW + self.smooth(self.join(torch.cat((x_BCHW, image_BCHW), dim=1)))
        return guided

"""The image stem: edges that no patch token holds, from the tower's own input pixels.

A token says what is in a patch, not where in it an edge runs. The stem looks at the pixels in
blocks of 4 x 4 (a block is a position at 4 times the grid, 16 of them make a patch), so that it
costs no pass at full size. Each block then takes, of the 3 x 3 patches around it, what lies in
those that look like it (joint bilateral upsampling, with learnt features: FeatUp, arXiv
2403.10516); and the stem's map joins the compact decoder where that predicts depth and, as in
RAFT, how each of a block's 16 sub-positions mixes its neighbours' depths.

Axes: B views, C channels, E embedding, H W pixels, h w the patch grid, K the 9 patches around one,
P the 16 blocks of a patch, N = h * w, M = N * K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.blocks import ConvNormGELU, resize
from clipdepth_plugin.config import NormKind

BLOCK = 4
"""Pixels of a block's side, where a patch has 16."""

EMBEDDING = 32
"""E, in which blocks and patches are compared."""


class ImageStem(nn.Module):
    """Pixels to C channels at 4 times the patch grid."""

    def __init__(self, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.first = ConvNormGELU(3 * BLOCK**2, channels, norm)
        self.second = ConvNormGELU(channels, channels, norm)

    def forward(self, pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) as the tower takes them -> (B, C, 4h, 4w)."""
        x_BCHW: Tensor = self.second(self.first(pixel_blocks(pixels_B3HW, grid)))
        return x_BCHW


def pixel_blocks(pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) pixels -> (B, 48, 4h, 4w), a block's pixels in its channels.

    Pixels of other patch sizes than 16 are first resized to 16 for each patch.
    """
    even_B3HW = resize(pixels_B3HW, (16 * grid[0], 16 * grid[1]))
    # Not pixel_unshuffle, which does nothing to an empty batch.
    blocks_BHWC = rearrange(even_B3HW, "b c (h y) (w x) -> b h w (c y x)", y=BLOCK, x=BLOCK)
    return rearrange(blocks_BHWC, "b h w c -> b c h w")


class PatchAttention(nn.Module):
    """Each block's mix of the 3 x 3 patches around it, by how alike their pixels are."""

    def __init__(self, in_channels: int, channels: int, stem_channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(stem_channels, EMBEDDING, 1)
        self.to_value = nn.Conv2d(in_channels, channels, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(2.0))

    def forward(self, fused_BChw: Tensor, image_BCHW: Tensor) -> Tensor:
        """(B, in, h, w) of the patches, (B, stem, 4h, 4w) of the blocks -> (B, C, 4h, 4w)."""
        blocks_BEHW = self.embed(image_BCHW)
        query_BhwPE = F.normalize(
            rearrange(blocks_BEHW, "b e (h y) (w x) -> b h w (y x) e", y=BLOCK, x=BLOCK), dim=-1
        )
        key_BhwKE = _around(F.normalize(F.avg_pool2d(blocks_BEHW, BLOCK), dim=1))
        alike_BhwPK = self.log_sharpness.exp() * query_BhwPE @ key_BhwKE.transpose(-1, -2)
        mixed_BhwPC = alike_BhwPK.softmax(dim=-1) @ _around(self.to_value(fused_BChw))
        mixed_BHWC = rearrange(mixed_BhwPC, "b h w (y x) c -> b (h y) (w x) c", y=BLOCK, x=BLOCK)
        return rearrange(mixed_BHWC, "b h w c -> b c h w")


class Guidance(nn.Module):
    """Joins the stem's map with the decoder's: Conv - norm - GELU twice, added; 0 at first."""

    def __init__(self, in_channels: int, channels: int, stem_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.stem = ImageStem(stem_channels, norm)
        self.attention = PatchAttention(in_channels, channels, stem_channels)
        self.join = ConvNormGELU(2 * channels + stem_channels, channels, norm)
        self.smooth = ConvNormGELU(channels, channels, norm)
        nn.init.zeros_(self.smooth.get_parameter("norm.weight"))

    def forward(self, x_BCHW: Tensor, fused_BChw: Tensor, pixels_B3HW: Tensor) -> Tensor:
        """Guides a map.

        Args:
            x_BCHW: (B, C, 4h, 4w), the decoder's.
            fused_BChw: (B, in, h, w), both pathways at the patch grid.
            pixels_B3HW: As the tower takes them.

        Returns:
            (B, C, 4h, 4w).
        """
        height, width = fused_BChw.shape[-2:]
        image_BCHW = self.stem(pixels_B3HW, (height, width))
        parts = (x_BCHW, image_BCHW, self.attention(fused_BChw, image_BCHW))
        guided: Tensor = x_BCHW + self.smooth(self.join(torch.cat(parts, dim=1)))
        return guided


def _around(x_BChw: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, K, C): each position's 3 x 3 neighbours, the border repeated.

    One gather, so that the products after it take contiguous rows: on a CPU their cost is a third.
    """
    height, width = x_BChw.shape[-2:]
    near = torch.arange(-1, 2, device=x_BChw.device)
    rows_h3 = (torch.arange(height, device=near.device)[:, None] + near).clamp(0, height - 1)
    columns_w3 = (torch.arange(width, device=near.device)[:, None] + near).clamp(0, width - 1)
    at_hwK = rearrange(rows_h3, "h i -> h 1 i 1") * width + rearrange(columns_w3, "w j -> 1 w 1 j")
    tokens_BNC = rearrange(x_BChw, "b c h w -> b (h w) c")
    around_BMC = tokens_BNC.index_select(1, at_hwK.flatten())
    return rearrange(around_BMC, "b (h w k) c -> b h w k c", h=height, w=width)

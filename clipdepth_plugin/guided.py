"""The image stem: edges that no patch token holds, from the tower's own input pixels.

A token says what is in a patch, not where in it an edge runs. The stem looks at the pixels in
blocks of 4 x 4 (a block is a position at 4 times the grid, 16 of them make a patch), so that it
costs no pass at full size. Each block then takes, of the 3 x 3 patches around it, what lies in
those that look like it (joint bilateral upsampling, with learnt features: FeatUp, arXiv
2403.10516); and the stem's map joins the compact decoder where that predicts depth and, as in
RAFT, how each of a block's 16 pixels mixes the depths of the blocks around it. The pixels' own
likeness is added to that: a pixel leans to those blocks that look like it.

Axes: B views, C channels, E embedding, H W a map's size, h w the patch grid, K the 9 positions
around one, P the 16 blocks of a patch, R the 16 pixels of a block, S = K * R, N = h * w, M = N * K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.blocks import ConvNormGELU, resize
from clipdepth_plugin.config import HeadConfig, NormKind
from clipdepth_plugin.precision import without_autocast

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


def even_pixels(pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Those of other patch sizes than 16 resized to 16 for each patch."""
    return resize(pixels_B3HW, (16 * grid[0], 16 * grid[1]))


def pixel_blocks(pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) pixels -> (B, 48, 4h, 4w), a block's pixels in its channels."""
    even_B3HW = even_pixels(pixels_B3HW, grid)
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


class PixelLikeness(nn.Module):
    """How much each pixel looks like each of the 3 x 3 blocks around it: logits of its mix.

    Minus the squared distance of their embeddings; a block's is the mean of its pixels'. What all
    blocks of a pixel share, its own square, is left out: a softmax does not see it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 3, ...) as the tower takes them -> (B, S, 4h, 4w) float32, K before R."""
        even_B3HW = even_pixels(pixels_B3HW, grid).contiguous(memory_format=torch.channels_last)
        pixel_BHWRE = rearrange(
            self.embed(even_B3HW), "b e (h y) (w x) -> b h w (y x) e", y=BLOCK, x=BLOCK
        )
        # In float32 to the end, as distances are differences of squares: autocast, under which
        # heads are trained, would make a product of half precision of it.
        with without_autocast(pixels_B3HW.device):
            alike_BSHW: Tensor = _likeness(pixel_BHWRE.float().contiguous())
        return alike_BSHW


def _likeness(pixel_BHWRE: Tensor) -> Tensor:
    """(B, H, W, R, E) embedded pixels of blocks -> (B, S, H, W)."""
    block_BEHW = rearrange(pixel_BHWRE.mean(dim=-2), "b h w e -> b e h w")
    block_BHWKE = _around(block_BEHW)
    alike_NKR = torch.baddbmm(
        block_BHWKE.square().sum(dim=-1, keepdim=True).flatten(0, 2),
        block_BHWKE.flatten(0, 2),
        rearrange(pixel_BHWRE, "b h w r e -> (b h w) e r"),
        beta=-1,
        alpha=2,
    )
    height, width = block_BEHW.shape[-2:]
    return rearrange(alike_NKR, "(b h w) k r -> b (k r) h w", h=height, w=width)


class Guidance(nn.Module):
    """Joins the stem's map with the decoder's: Conv - norm - GELU twice, added; 0 at first.

    Attributes:
        likeness: That of pixels, which the decoder adds to its mask's logits, or None.
    """

    def __init__(self, in_channels: int, channels: int, config: HeadConfig) -> None:
        super().__init__()
        stem_channels, norm = config.stem_channels, config.norm
        self.stem = ImageStem(stem_channels, norm)
        self.attention = PatchAttention(in_channels, channels, stem_channels)
        self.join = ConvNormGELU(2 * channels + stem_channels, channels, norm)
        self.smooth = ConvNormGELU(channels, channels, norm)
        nn.init.zeros_(self.smooth.get_parameter("norm.weight"))
        self.likeness = (
            PixelLikeness(config.likeness_channels) if config.likeness_channels else None
        )

    def forward(
        self, x_BCHW: Tensor, fused_BChw: Tensor, pixels_B3HW: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Guides a map.

        Args:
            x_BCHW: (B, C, 4h, 4w), the decoder's.
            fused_BChw: (B, in, h, w), both pathways at the patch grid.
            pixels_B3HW: As the tower takes them.

        Returns:
            (B, C, 4h, 4w), and the likeness (B, S, 4h, 4w) where pixels are compared.
        """
        height, width = fused_BChw.shape[-2:]
        even_B3HW = even_pixels(pixels_B3HW, (height, width))
        image_BCHW = self.stem(even_B3HW, (height, width))
        parts = (x_BCHW, image_BCHW, self.attention(fused_BChw, image_BCHW))
        guided_BCHW: Tensor = x_BCHW + self.smooth(self.join(torch.cat(parts, dim=1)))
        likeness = self.likeness
        return guided_BCHW, None if likeness is None else likeness(even_B3HW, (height, width))


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

"""The image stem: edges inside patches, from the tower's own input pixels.

A token says what is in a patch, not where in it an edge runs. The stem reads the pixels in blocks
of 4 x 4 (a position at 4 times the grid), so that it costs no pass at full size. Each block mixes
the 3 x 3 patches around it by their likeness (joint bilateral upsampling with learnt features:
FeatUp, arXiv 2403.10516). The stem's map joins the compact decoder before its depth and its mask,
to whose logits the likeness of each pixel to the blocks around it is added.

Axes: B views, C channels, E embedding, H W a map's size, h w the patch grid, K the 9 positions
around one, N = B * H * W blocks, P the 16 blocks of a patch, R the 16 pixels of a block, S = K * R,
Y X a kernel's size in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.decoders.blocks import ConvNormAct, neighbours, resize
from clipdepth_plugin.head_config import HeadConfig, NormKind
from clipdepth_plugin.precision import without_autocast

BLOCK = 4
"""Pixels of a block's side, where a patch has 16."""

EMBEDDING = 32
"""E, in which blocks and patches are compared."""


class BlockConv(nn.Conv2d):
    """A 3x3 convolution of blocks of pixels (``pixel_blocks``), given the pixels themselves.

    3 x 3 blocks of 4 x 4 pixels are 12 x 12 pixels: a convolution of these with a stride of a block
    is the same, and the blocks are not written out.
    """

    def forward(self, even_B3HW: Tensor) -> Tensor:
        """``even_pixels`` -> (B, C, 4h, 4w)."""
        weight_C3YX = rearrange(self.weight, "o (c y x) i j -> o c (i y) (j x)", y=BLOCK, x=BLOCK)
        return F.conv2d(even_B3HW, weight_C3YX, self.bias, stride=BLOCK, padding=BLOCK)


class ImageStem(nn.Module):
    """Pixels to C channels at 4 times the patch grid."""

    def __init__(self, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.first = ConvNormAct(3 * BLOCK**2, channels, norm, "gelu", conv=BlockConv)
        self.second = ConvNormAct(channels, channels, norm, "gelu")

    def forward(self, even_B3HW: Tensor) -> Tensor:
        """``even_pixels`` -> (B, C, 4h, 4w)."""
        x_BCHW: Tensor = self.second(self.first(even_B3HW))
        return x_BCHW


def even_pixels(pixels_B3HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels resized to 16 x 16 for each patch; channels last."""
    even_B3HW = resize(pixels_B3HW, (16 * grid[0], 16 * grid[1]))
    return even_B3HW.contiguous(memory_format=torch.channels_last)


def pixel_blocks(even_B3HW: Tensor) -> Tensor:
    """``even_pixels`` -> (B, 48, 4h, 4w), a block's pixels in its channels."""
    # Not pixel_unshuffle, which does nothing to an empty batch.
    blocks_BHWC = rearrange(even_B3HW, "b c (h y) (w x) -> b h w (c y x)", y=BLOCK, x=BLOCK)
    return rearrange(blocks_BHWC, "b h w c -> b c h w")


class PatchAttention(nn.Module):
    """Each block's mix of the 3 x 3 patches around it, by how alike their pixels are."""

    def __init__(self, in_channels: int, channels: int, stem_channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(stem_channels, EMBEDDING, 1)
        self.to_value = nn.Conv2d(in_channels, channels, 1)
        # Not a scalar, which FSDP can't shard.
        self.log_sharpness = nn.Parameter(torch.tensor([2.0]))

    def forward(self, fused_BChw: Tensor, image_BCHW: Tensor) -> Tensor:
        """(B, in, h, w) of the patches, (B, stem, 4h, 4w) of the blocks -> (B, C, 4h, 4w)."""
        blocks_BEHW = self.embed(image_BCHW)
        query_BhwPE = _unit(
            rearrange(blocks_BEHW, "b e (h y) (w x) -> b h w (y x) e", y=BLOCK, x=BLOCK), dim=-1
        )
        key_BhwKE = neighbours(_unit(F.avg_pool2d(blocks_BEHW, BLOCK), dim=1))
        alike_BhwKP = self.log_sharpness.exp() * key_BhwKE @ query_BhwPE.transpose(-1, -2)
        # Over K before P: over a short last axis a softmax takes a CPU six times as long.
        weights_BhwPK = alike_BhwKP.softmax(dim=-2).transpose(-1, -2)
        mixed_BhwPC = weights_BhwPK @ neighbours(self.to_value(fused_BChw))
        mixed_BHWC = rearrange(mixed_BhwPC, "b h w (y x) c -> b (h y) (w x) c", y=BLOCK, x=BLOCK)
        return rearrange(mixed_BHWC, "b h w c -> b c h w")


def _unit(x: Tensor, dim: int) -> Tensor:
    """Of length 1; zeros stay zeros in half precision, too, where the default's eps is 0."""
    return F.normalize(x, dim=dim, eps=1e-6)


class PixelLikeness(nn.Module):
    """How much each pixel looks like each of the 3 x 3 blocks around it: logits of its mix.

    Minus the squared distance of their embeddings; a block's is the mean of its pixels'. What all
    blocks of a pixel share, its own square, is left out: a softmax does not see it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, even_B3HW: Tensor) -> Tensor:
        """``even_pixels`` -> (B, S, 4h, 4w) float32, K before R."""
        return likeness_logits(self.embed(even_B3HW))


def likeness_logits(embedded_BEYX: Tensor) -> Tensor:
    """Of the pixels' embeddings: see ``PixelLikeness``."""
    pixel_BHWRE = rearrange(embedded_BEYX, "b e (h y) (w x) -> b h w (y x) e", y=BLOCK, x=BLOCK)
    # In float32 to the end, as distances are differences of squares: autocast, under which
    # heads are trained, would make a product of half precision of it.
    with without_autocast(embedded_BEYX.device):
        pixel_BHWRE = pixel_BHWRE.float().contiguous()
        block_BEHW = rearrange(pixel_BHWRE.mean(dim=-2), "b h w e -> b e h w")
        block_NKE = neighbours(block_BEHW).flatten(0, 2)
        square_NK1 = block_NKE.square().sum(dim=-1, keepdim=True)
        pixel_NER = rearrange(pixel_BHWRE, "b h w r e -> (b h w) e r")
        alike_NKR = torch.baddbmm(square_NK1, block_NKE, pixel_NER, beta=-1, alpha=2)
    height, width = block_BEHW.shape[-2:]
    return rearrange(alike_NKR, "(b h w) k r -> b (k r) h w", h=height, w=width)


class Guidance(nn.Module):
    """Joins the stem's map with the decoder's: Conv - norm - GELU twice, added; 0 at first.

    The first reads all channels and may be 1x1; the second is 3x3. The decoder adds ``likeness``,
    where there is one, to its mask's logits.
    """

    def __init__(self, in_channels: int, channels: int, config: HeadConfig) -> None:
        super().__init__()
        stem_channels, norm = config.stem_channels, config.norm
        self.stem = ImageStem(stem_channels, norm)
        self.attention = PatchAttention(in_channels, channels, stem_channels)
        self.join = ConvNormAct(
            2 * channels + stem_channels, channels, norm, "gelu", kernel=config.join_kernel
        )
        self.smooth = ConvNormAct(channels, channels, norm, "gelu")
        nn.init.zeros_(
            (self.smooth.conv if norm == "none" else self.smooth.norm).get_parameter("weight")
        )
        self.likeness = (
            PixelLikeness(config.likeness_channels) if config.likeness_channels else None
        )

    def forward(self, x_BCHW: Tensor, fused_BChw: Tensor, even_B3HW: Tensor) -> Tensor:
        """The decoder's (B, C, 4h, 4w), both pathways' (B, in, h, w) -> (B, C, 4h, 4w)."""
        image_BCHW = self.stem(even_B3HW)
        parts = (x_BCHW, image_BCHW, self.attention(fused_BChw, image_BCHW))
        guided_BCHW: Tensor = x_BCHW + self.smooth(self.join(torch.cat(parts, dim=1)))
        return guided_BCHW

"""The convolution blocks that the pathways and the fusion share.

Axes: B views, C channels, H W and h w a map's size, K the 9 positions around one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.head_config import NormKind

BlockActivation = Literal["relu", "gelu"]


def resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with ``align_corners=False`` to (H, W), as everywhere in the paper."""
    if x_BCHW.shape[-2:] == size:
        return x_BCHW
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def neighbours(x_BChw: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, K, C): each position's 3 x 3 neighbours, the border repeated.

    Copied once, so that the products after it take contiguous rows: on a CPU they cost a third.
    """
    padded_BChw = F.pad(x_BChw, (1, 1, 1, 1), mode="replicate")
    around_BhwCij = rearrange(padded_BChw, "b c h w -> b h w c").unfold(1, 3, 1).unfold(2, 3, 1)
    return rearrange(around_BhwCij, "b h w c i j -> b h w (i j) c")


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: NormKind,
    kind: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Conv2d:
    """The convolution before ``make_norm``: with a bias where there is none.

    Without a norm He's initialisation (arXiv 1502.01852) keeps the maps' size; torch's own shrinks
    them by two fifths at every convolution.
    """
    bare = norm == "none"
    conv = kind(in_channels, out_channels, kernel, padding=kernel // 2, bias=bare)
    if bare:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    return conv


def make_norm(kind: NormKind, channels: int) -> nn.Module:
    """The norm after a convolution; group norm in up to 8 groups of more than one channel."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = math.gcd(channels, 8)
    return nn.GroupNorm(1 if groups == channels else groups, channels)


class ConvNormAct(nn.Module):
    """Convolution, 3x3 or 1x1 - norm - activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: NormKind,
        activation: BlockActivation,
        *,
        kernel: Literal[1, 3] = 3,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.conv = make_conv(in_channels, out_channels, kernel, norm, conv)
        self.norm = make_norm(norm, out_channels)
        self.activation = activation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        normed_BCHW = self.norm(self.conv(x_BCHW))
        return F.relu(normed_BCHW) if self.activation == "relu" else F.gelu(normed_BCHW)


class UpConv(nn.Module):
    """Transposed convolution 2x2 of stride 2, then Conv - norm - ReLU: doubles the size."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.smooth = ConvNormAct(out_channels, out_channels, norm, "relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W)."""
        smoothed: Tensor = self.smooth(self.upsample(x_BCHW))
        return smoothed


class ResidualBlock(nn.Module):
    """Conv - norm - ReLU - dropout - Conv - norm, plus the input, ReLU."""

    def __init__(self, channels: int, dropout: float, norm: NormKind) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels, norm, "relu")
        self.dropout = nn.Dropout(dropout)
        self.conv = make_conv(channels, channels, 3, norm)
        self.norm = make_norm(norm, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(self.norm(self.conv(self.dropout(self.first(x_BCHW)))) + x_BCHW)

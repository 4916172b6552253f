"""Fusion of the two pathways: gated skips into an upsampling decoder stage.

SPACE-CLIP, arXiv 2601.17657, section 3.4.

Axes: B views, C channels, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.blocks import ConvNormAct, ResidualBlock, UpConv, resize


class SkipGate(nn.Module):
    """skip * (1 + sigmoid(Conv 1x1(u))): the decoder says where a skip matters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, skip_BCHW: Tensor, u_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C, H, W) -> (B, C, H, W)."""
        gated: Tensor = skip_BCHW * (1 + torch.sigmoid(self.conv(u_BCHW)))
        return gated


class FusionStage(nn.Module):
    """Doubles the map below and joins it with the gated semantic and structural skips."""

    def __init__(
        self, in_channels: int, channels: int, config: HeadConfig, *, structural: bool
    ) -> None:
        super().__init__()
        norm = config.norm
        self.up = UpConv(in_channels, channels, norm)
        self.semantic_gate = SkipGate(channels)
        self.structural_gate = SkipGate(channels) if structural else None
        self.join = ConvNormAct((3 if structural else 2) * channels, channels, norm, "relu")
        self.residual = ResidualBlock(channels, config.dropout, norm)

    def forward(
        self, below_BCHW: Tensor, semantic_BChw: Tensor, structural_BCHW: Tensor | None
    ) -> Tensor:
        """Fuses one stage.

        Args:
            below_BCHW: (B, in, H, W), the stage before, or the first semantic map.
            semantic_BChw: (B, C, h, w), the stage's semantic map at the patch grid.
            structural_BCHW: (B, C, 2H, 2W), the stage's structural map, or None where the
                stage has none.

        Returns:
            (B, C, 2H, 2W).
        """
        u_BCHW = self.up(below_BCHW)
        skips = [self.semantic_gate(resize(semantic_BChw, u_BCHW.shape[-2:]), u_BCHW)]
        if self.structural_gate is not None and structural_BCHW is not None:
            skips.append(self.structural_gate(structural_BCHW, u_BCHW))
        fused: Tensor = self.residual(self.join(torch.cat((u_BCHW, *skips), dim=1)))
        return fused

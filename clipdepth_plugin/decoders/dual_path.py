"""The published decoder: FiLM dual path with gated fusion.

SPACE-CLIP, arXiv 2601.17657, section 3 (3.4 for the fusion); exactly the published function.

Axes: B views, C channels of a stage, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipdepth_plugin.decoders.blocks import ConvNormAct, ResidualBlock, UpConv, resize
from clipdepth_plugin.decoders.decoder import Decoder, register_decoder
from clipdepth_plugin.decoders.pathways import SemanticPathway, StructuralPathway
from clipdepth_plugin.decoders.readout import DepthEstimate, DepthReadout
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head_config import HeadConfig


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
        """(B, in, H, W), the semantic (B, C, h, w), the structural (B, C, 2H, 2W) -> the latter."""
        u_BCHW = self.up(below_BCHW)
        skips = [self.semantic_gate(resize(semantic_BChw, u_BCHW.shape[-2:]), u_BCHW)]
        if self.structural_gate is not None and structural_BCHW is not None:
            skips.append(self.structural_gate(structural_BCHW, u_BCHW))
        fused: Tensor = self.residual(self.join(torch.cat((u_BCHW, *skips), dim=1)))
        return fused


@register_decoder("dual-path")
class DualPathDecoder(Decoder):
    """Semantic and structural pathways, fused stage by stage up to 16 times the grid.

    Auxiliary outputs, those of the first stages, are run only where they are asked for.
    """

    @classmethod
    def check(cls, config: HeadConfig) -> None:
        """See ``Decoder.check``."""
        stages = len(config.channels)
        if config.stem_channels or config.likeness_channels or config.join_kernel != 3:
            raise ValueError(
                "stem_channels, likeness_channels, join_kernel: the dual-path decoder has no image "
                "stem; leave them at 0, 0 and 3"
            )
        if stages == 0:
            raise ValueError("channels: needs at least one decoder stage")
        if len(config.semantic_levels) != stages:
            raise ValueError(
                f"semantic_levels: {len(config.semantic_levels)} levels for {stages} stages "
                f"(channels has {stages} entries); give one level for each stage"
            )
        if config.structural and len(config.structural_levels) != stages - 1:
            raise ValueError(
                f"structural_levels: {len(config.structural_levels)} levels for {stages} stages; "
                f"give {stages - 1}, one for each stage but the last, or set structural=False"
            )
        if config.structural and stages == 1:
            raise ValueError("structural: needs at least two stages; set structural=False")
        if config.auxiliary > stages:
            raise ValueError(f"auxiliary: {config.auxiliary} outputs for {stages} stages")

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:
        """2 for each stage."""
        return 1 << len(config.channels)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        channels = config.channels
        self.semantic = SemanticPathway(config)
        self.structural = StructuralPathway(config) if config.structural else None
        last = len(channels) - 1
        self.fusion = nn.ModuleList(
            FusionStage(c_in, c, config, structural=config.structural and i < last)
            for i, (c_in, c) in enumerate(zip((channels[0], *channels[:-1]), channels, strict=True))
        )
        hidden = max(channels[-1] // 2, 1)
        self.readout = DepthReadout(
            channels[-1], hidden, config, kernel=3, confidence=config.confidence
        )
        self.auxiliary = nn.ModuleList(
            DepthReadout(c, max(c // 2, 16), config, kernel=1) for c in channels[: config.auxiliary]
        )

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,
    ) -> DepthEstimate:
        """Maps of ``size``, auxiliary ones where asked for; ``size`` None gives native sizes."""
        stages = self._decode(features)
        estimate: DepthEstimate = self.readout(stages[-1], size)
        if not auxiliary:
            return estimate
        read = zip(self.auxiliary, stages, strict=False)
        return estimate._replace(
            auxiliary=tuple(readout(x_BCHW, size).depth for readout, x_BCHW in read)
        )

    def auxiliary_readouts(self) -> Sequence[nn.Module]:
        """Those of the first stages."""
        return list(self.auxiliary)

    def _decode(self, features: TowerFeatures) -> list[Tensor]:
        """The maps of all fusion stages, (B, C_i, 2^(i+1) h, 2^(i+1) w)."""
        semantic = self.semantic(features)
        structural: list[Tensor | None] = [None] * len(semantic)
        if self.structural is not None:
            structural = [*self.structural(features), None]
        x_BCHW, stages = semantic[0], []
        for stage, skip_BChw, skip_BCHW in zip(self.fusion, semantic, structural, strict=True):
            x_BCHW = stage(x_BCHW, skip_BChw, skip_BCHW)
            stages.append(x_BCHW)
        return stages

"""The published decoder: FiLM dual path with gated fusion.

SPACE-CLIP, arXiv 2601.17657, section 3; exactly the published function.

Axes: B views, C channels of a stage, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.decoder import Decoder, register_decoder
from clipdepth_plugin.decoders.fusion import FusionStage
from clipdepth_plugin.decoders.pathways import SemanticPathway, StructuralPathway
from clipdepth_plugin.decoders.readout import DepthEstimate, DepthReadout
from clipdepth_plugin.features import TowerFeatures


@register_decoder("dual-path")
class DualPathDecoder(Decoder):
    """Semantic and structural pathways, fused stage by stage up to 16 times the grid.

    Attributes:
        semantic: The semantic pathway: FiLM and projections.
        structural: The structural pathway, or None.
        fusion: The stages.
        readout: The depth output.
        auxiliary: Depth outputs of the first stages, run only where they are asked for.
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
            auxiliary=tuple(readout(x_BCHW, size).metres for readout, x_BCHW in read)
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

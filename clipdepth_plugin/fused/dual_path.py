"""The inference form of the published decoder: `decoders/dual_path.py`, folded and composed.

Axes: B views, N patch tokens, C channels of a stage, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.blocks import UpConv
from clipdepth_plugin.decoders.dual_path import DualPathDecoder, FusionStage
from clipdepth_plugin.decoders.pathways import (
    FiLM,
    SemanticPathway,
    StructuralPathway,
    StructuralStage,
    tokens_to_map,
)
from clipdepth_plugin.decoders.readout import DepthEstimate, DepthReadout, read_estimate
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.forms import Packing, fused_form
from clipdepth_plugin.fused.layers import Conv, GatedJoin, ResizedJoin, Up
from clipdepth_plugin.fused.weights import Upsampling, fold


@fused_form(DualPathDecoder)
class FusedDualPath(nn.Module):
    """Both pathways' projections in one launch, then the stages."""

    def __init__(self, decoder: DualPathDecoder, packing: Packing) -> None:
        super().__init__()
        self.projections = Projections(decoder.semantic, decoder.structural, packing)
        stages = [] if decoder.structural is None else list(decoder.structural.stages)
        self.structural = nn.ModuleList(
            _Structural(stage, packing) for stage in stages if isinstance(stage, StructuralStage)
        )
        self.fusion = nn.ModuleList(
            _Fusion(stage, packing) for stage in decoder.fusion if isinstance(stage, FusionStage)
        )
        self.readout = _Readout(decoder.readout, packing)

    def forward(self, features: TowerFeatures, size: tuple[int, int] | None) -> DepthEstimate:
        """(B, 1, *size) float32 maps; ``size`` None gives 2 to the number of stages."""
        semantic, projected = self.projections(features)
        maps: list[Tensor] = []
        for stage, skip_BChw in zip(self.structural, projected, strict=True):
            first = self.projections.structural_levels[0]
            below = maps[-1] if maps else tokens_to_map(features.levels[first], features.grid)
            maps.append(stage(below, skip_BChw))
        structural = [*maps, *[None] * (len(semantic) - len(maps))]
        x_BCHW = semantic[0]
        for stage, skip_BChw, skip_BCHW in zip(self.fusion, semantic, structural, strict=True):
            x_BCHW = stage(x_BCHW, skip_BChw, skip_BCHW)
        estimate: DepthEstimate = self.readout(x_BCHW, size)
        return estimate


class Projections(nn.Module):
    """FiLM's parameters, and the projections of all levels; FiLM modulates the semantic ones."""

    def __init__(
        self, semantic: SemanticPathway, structural: StructuralPathway | None, packing: Packing
    ) -> None:
        super().__init__()
        self.semantic_levels, projections = semantic.levels, list(semantic.projections)
        self.structural_levels: tuple[int, ...] = ()
        if structural is not None:
            self.structural_levels = structural.levels
            projections += structural.projections
        folded = [fold(project) for project in projections if isinstance(project, nn.Conv2d)]
        self.channels = tuple(len(one.bias) for one in folded)
        self.weight = packing.pack(torch.cat([one.weight[:, :, 0, 0] for one in folded]))
        self.bias = packing.pack(torch.cat([one.bias for one in folded]))
        films = [film for film in semantic.film or () if isinstance(film, FiLM)]
        self.mlps = nn.ParameterList(
            packing.pack(torch.stack([getattr(film.mlp[layer], name) for film in films]))
            for layer in (0, 2)
            for name in ("weight", "bias")
            if films
        )
        self.triton = packing.triton

    def forward(self, features: TowerFeatures) -> tuple[list[Tensor], list[Tensor]]:
        """One (B, C, h, w) map for each level of the two pathways, in one launch."""
        levels, count = (*self.semantic_levels, *self.structural_levels), len(self.semantic_levels)
        projected = ops.film_project(
            [features.levels[level] for level in levels],
            self._film(features),
            self.weight,
            self.bias,
            self.channels,
            triton=self.triton,
        )
        maps = [tokens_to_map(x_BNC, features.grid) for x_BNC in projected]
        return maps[:count], maps[count:]

    def _film(self, features: TowerFeatures) -> Tensor | None:
        if features.context is None:  # checked_features leaves it out without FiLM
            return None
        return ops.film_mlp(features.context, *self.mlps, activation="relu", triton=self.triton)


class _Structural(nn.Module):
    """A stage of the structural pathway."""

    def __init__(self, stage: StructuralStage, packing: Packing) -> None:
        super().__init__()
        self.up = _up(stage.up, packing)
        channels = stage.join.conv.out_channels
        self.join = ResizedJoin(fold(stage.join.conv, stage.join.norm), channels, packing)

    def forward(self, below_BCHW: Tensor, projected_BChw: Tensor) -> Tensor:
        joined: Tensor = self.join(self.up(below_BCHW), projected_BChw)
        return joined


class _Fusion(nn.Module):
    """A stage of the fusion."""

    def __init__(self, stage: FusionStage, packing: Packing) -> None:
        super().__init__()
        self.up = _up(stage.up, packing)
        gates = [stage.semantic_gate]
        gates += [] if stage.structural_gate is None else [stage.structural_gate]
        join = fold(stage.join.conv, stage.join.norm)
        self.join = GatedJoin([fold(gate.conv) for gate in gates], join, packing)
        residual = stage.residual
        self.first = Conv(fold(residual.first.conv, residual.first.norm), "relu", packing)
        self.second = Conv(fold(residual.conv, residual.norm), "relu", packing)

    def forward(
        self, below_BCHW: Tensor, semantic_BChw: Tensor, structural_BCHW: Tensor | None
    ) -> Tensor:
        x_BCHW = self.join(self.up(below_BCHW), semantic_BChw, structural_BCHW)
        fused: Tensor = self.second(self.first(x_BCHW), residual_BCHW=x_BCHW)
        return fused


class _Readout(nn.Module):
    """`readout.DepthReadout`: one op where its norm folds and it has but one output."""

    def __init__(self, readout: DepthReadout, packing: Packing) -> None:
        super().__init__()
        self.hidden = Conv(fold(readout.hidden.conv, readout.hidden.norm), "relu", packing)
        self.activation = readout.activation
        self.last = Conv(fold(readout.to_depth), None, packing)
        self.triton = packing.triton

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None) -> DepthEstimate:
        """(B, C, H, W) -> (B, 1, *size) float32 maps; ``size`` None keeps (H, W)."""
        if not self.hidden.after.norm and len(self.last.bias) == 1:
            return DepthEstimate(
                ops.depth_readout(
                    x_BCHW,
                    self.hidden.weight,
                    self.hidden.bias,
                    self.last.weight,
                    self.last.bias,
                    activation=self.activation,
                    size=size,
                    triton=self.triton,
                )
            )
        return read_estimate(self.activation, self.last(self.hidden(x_BCHW)), size)


def _up(up: UpConv, packing: Packing) -> Up:
    smooth = fold(up.smooth.conv, up.smooth.norm)
    return Up(Upsampling.of_transposed(up.upsample), smooth, "relu", packing)

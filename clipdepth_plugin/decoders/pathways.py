"""The two pathways of the head, from tower tokens to the maps that the fusion takes.

SPACE-CLIP, arXiv 2601.17657, sections 3.2 (semantic) and 3.3 (structural). FiLM: Visual Reasoning
with a General Conditioning Layer, arXiv 1709.07871.

Axes: B views, N = h * w patch tokens, D tower width, C channels of a stage, H W a map's size.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.decoders.blocks import ConvNormAct, UpConv, resize
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head_config import HeadConfig, NormKind


def tokens_to_map(x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lays row-major tokens (B, h*w, D) out as (B, D, h, w)."""
    return rearrange(x_BND, "b (h w) d -> b d h w", h=grid[0], w=grid[1])


class FiLM(nn.Module):
    """gamma(context) * x + beta(context), with (gamma, beta) from a two-layer MLP.

    Gamma is the plain factor, not 1 + gamma.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width))

    def forward(self, x_BND: Tensor, context_BD: Tensor) -> Tensor:
        """Modulates (B, N, D) tokens by a (B, D) context; returns (B, N, D)."""
        gamma_B1D, beta_B1D = self.mlp(context_BD)[:, None].chunk(2, dim=-1)
        modulated: Tensor = gamma_B1D * x_BND + beta_B1D
        return modulated


class SemanticPathway(nn.Module):
    """Levels modulated by the global context, each projected to its stage's channels."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width, self.levels = config.width, config.semantic_levels
        self.film = (
            nn.ModuleList(FiLM(width, config.film_hidden) for _ in self.levels)
            if config.film
            else None
        )
        self.projections = nn.ModuleList(nn.Conv2d(width, c, 1) for c in config.channels)

    def forward(self, features: TowerFeatures) -> list[Tensor]:
        """One (B, C_i, h, w) map for each stage i; with FiLM there must be a context."""
        maps = []
        for i, (level, project) in enumerate(zip(self.levels, self.projections, strict=True)):
            x_BND = features.levels[level]
            if self.film is not None:
                x_BND = self.film[i](x_BND, features.context)
            maps.append(project(tokens_to_map(x_BND, features.grid)))
        return maps


class StructuralStage(nn.Module):
    """Doubles the map below and joins it with the stage's own level."""

    def __init__(self, in_channels: int, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.up = UpConv(in_channels, channels, norm)
        self.join = ConvNormAct(2 * channels, channels, norm, "relu")

    def forward(self, below_BCHW: Tensor, projected_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) and (B, C, h, w) -> (B, C, 2H, 2W)."""
        up_BCHW = self.up(below_BCHW)
        skip_BCHW = resize(projected_BCHW, up_BCHW.shape[-2:])
        joined: Tensor = self.join(torch.cat((up_BCHW, skip_BCHW), dim=1))
        return joined


class StructuralPathway(nn.Module):
    """Unmodulated levels, decoded coarse to fine beside the semantic pathway.

    It starts from the raw D-channel map of its first level.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width, channels = config.width, config.channels[:-1]
        self.levels = config.structural_levels
        self.projections = nn.ModuleList(nn.Conv2d(width, c, 1) for c in channels)
        self.stages = nn.ModuleList(
            StructuralStage(c_in, c, config.norm)
            for c_in, c in zip((width, *channels[:-1]), channels, strict=True)
        )

    def forward(self, features: TowerFeatures) -> list[Tensor]:
        """One (B, C_i, 2^(i+1) h, 2^(i+1) w) map for each of its stages i."""
        x_BCHW = tokens_to_map(features.levels[self.levels[0]], features.grid)
        maps = []
        for level, project, stage in zip(self.levels, self.projections, self.stages, strict=True):
            projected_BCHW = project(tokens_to_map(features.levels[level], features.grid))
            x_BCHW = stage(x_BCHW, projected_BCHW)
            maps.append(x_BCHW)
        return maps

"""The compact decoder: the dual path at a thirtieth of the published one's operations.

Levels are normalised (they differ in scale by an order of magnitude), projected, and fused at the
patch grid; FiLM works after the projection, where it is narrow, and starts as the identity. Two
depth-to-space steps go up to 4 times the grid; from there each position predicts its depth and how
to mix it from its neighbours at 16 times the grid (`convex.py`).

Axes: B views, N = h * w patch tokens, D tower width, C channels, H W a map's size, h w the grid,
L levels, P = 2 C FiLM parameters, S mask logits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.decoders.blocks import ConvNormAct
from clipdepth_plugin.decoders.convex import (
    CONVEX_FACTOR,
    convex_upsample,
    convex_weights,
    spline_logits,
)
from clipdepth_plugin.decoders.decoder import Decoder, register_decoder
from clipdepth_plugin.decoders.guided import Guidance, even_pixels
from clipdepth_plugin.decoders.pathways import tokens_to_map
from clipdepth_plugin.decoders.readout import DepthActivation, DepthEstimate, resized_estimate
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head_config import HeadConfig


class NormedLevels(nn.Module):
    """Levels, each normalised and projected: one (B, C, h, w) map each."""

    def __init__(self, width: int, levels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.levels)
        self.projections = nn.ModuleList(nn.Linear(width, channels) for _ in self.levels)

    def forward(self, features: TowerFeatures) -> list[Tensor]:
        """One map for each level, in order."""
        return [
            tokens_to_map(project(norm(features.levels[level])), features.grid)
            for level, norm, project in zip(self.levels, self.norms, self.projections, strict=True)
        ]


class NarrowFiLM(nn.Module):
    """(1 + gamma_l) * x_l + beta_l for every level l, from one MLP; the identity at first."""

    def __init__(self, width: int, hidden: int, levels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        last = nn.Linear(hidden, 2 * levels * channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)
        self.count = levels

    def forward(self, maps: Sequence[Tensor], context_BD: Tensor) -> list[Tensor]:
        """Modulates one (B, C, h, w) map for each level."""
        film_BP = self.mlp(self.norm(context_BD))
        film_2LBC11 = rearrange(film_BP, "b (l two c) -> two l b c 1 1", l=self.count, two=2)
        shares = zip(maps, *film_2LBC11.unbind(0), strict=True)
        return [torch.addcmul(beta, x, 1 + gamma) for x, gamma, beta in shares]


class DepthToSpace(nn.Module):
    """1x1 to four times the channels, pixel shuffle, Conv - norm - GELU: doubles the size."""

    def __init__(self, in_channels: int, out_channels: int, config: HeadConfig) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        with torch.no_grad():  # a position's four fine ones begin as equals (arXiv 1707.02937)
            for x in self.expand.parameters():
                x.copy_(x[:out_channels].repeat_interleave(4, dim=0))
        self.smooth = ConvNormAct(out_channels, out_channels, config.norm, "gelu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W)."""
        smoothed: Tensor = self.smooth(F.pixel_shuffle(self.expand(x_BCHW), 2))
        return smoothed


@register_decoder("compact")
class CompactDecoder(Decoder):
    """Both pathways fused at the patch grid, then depth-to-space and convex upsampling.

    ``config.channels`` are those at 1, 2 and 4 times the grid; the structural pathway has half of
    the first.
    """

    @classmethod
    def check(cls, config: HeadConfig) -> None:
        """See ``Decoder.check``."""
        if len(config.channels) != 3 or config.channels[0] % 2:
            raise ValueError(
                f"channels: {config.channels}; the compact decoder takes three numbers, at 1, 2 "
                "and 4 times the grid, the first of them even"
            )
        if not config.semantic_levels:
            raise ValueError("semantic_levels: needs at least one level")
        if config.structural and not config.structural_levels:
            raise ValueError("structural_levels: give at least one, or set structural=False")
        if config.likeness_channels and not config.stem_channels:
            raise ValueError(
                "likeness_channels: pixels are compared beside an image stem only: give "
                "stem_channels, or set likeness_channels=0"
            )
        if config.join_kernel != 3 and not config.stem_channels:
            raise ValueError(
                "join_kernel: there is no image stem to join: give stem_channels, or leave it at 3"
            )
        if config.auxiliary:
            raise ValueError("auxiliary: the compact decoder has no auxiliary outputs; set 0")

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:  # noqa: ARG003 (the same for all)
        """4 by depth-to-space, then ``CONVEX_FACTOR``."""
        return 4 * CONVEX_FACTOR

    @classmethod
    def reads_pixels(cls, config: HeadConfig) -> bool:
        """With an image stem."""
        return config.stem_channels > 0

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        at_grid, at_double, at_quadruple = config.channels
        half = at_grid // 2
        self.semantic = NormedLevels(config.width, config.semantic_levels, at_grid)
        self.film = (
            NarrowFiLM(config.width, config.film_hidden, len(config.semantic_levels), at_grid)
            if config.film
            else None
        )
        self.semantic_conv = ConvNormAct(at_grid, at_grid, config.norm, "gelu")
        self.structural = (
            NormedLevels(config.width, config.structural_levels, half)
            if config.structural
            else None
        )
        self.structural_conv = (
            ConvNormAct(half, half, config.norm, "gelu") if config.structural else None
        )
        joined = at_grid + (half if config.structural else 0)
        self.join = ConvNormAct(joined, at_grid, config.norm, "gelu")
        self.dropout = nn.Dropout2d(config.dropout)
        self.up = nn.Sequential(
            DepthToSpace(at_grid, at_double, config), DepthToSpace(at_double, at_quadruple, config)
        )
        self.guidance = Guidance(at_grid, at_quadruple, config) if config.stem_channels else None
        self.activation = DepthActivation(config.activation, config.depth_range)
        outputs = self.activation.channels + config.confidence
        self.to_logit = nn.Conv2d(at_quadruple, outputs, 3, padding=1)
        self.to_mask = nn.Conv2d(at_quadruple, 9 * CONVEX_FACTOR**2, 1)
        nn.init.zeros_(self.to_mask.weight)
        self.to_mask.bias = nn.Parameter(spline_logits(CONVEX_FACTOR))
        self.confidence = config.confidence

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002 (it has none)
    ) -> DepthEstimate:
        """Maps of ``size``; None gives 16 times the grid. There are no auxiliary ones."""
        fused_BChw = self._fuse(features)
        x_BCHW = self.up(fused_BChw)
        likeness = None
        if self.guidance is not None:
            assert features.pixels is not None
            even_B3HW = even_pixels(features.pixels, features.grid)
            x_BCHW = self.guidance(x_BCHW, fused_BChw, even_B3HW)
            likeness = self.guidance.likeness
        logits_BCHW = self.to_logit(x_BCHW).float()
        mask_BSHW = self.to_mask(x_BCHW).float()
        if likeness is not None:
            mask_BSHW = mask_BSHW + likeness(even_B3HW)
        weights = convex_weights(mask_BSHW)
        channels = self.activation.channels
        # Mixed before the activation, which bounds the result and keeps edges sharp.
        level_B1HW = convex_upsample(self.activation.to_level(logits_BCHW[:, :channels]), weights)
        scale_B1HW = (
            convex_upsample(logits_BCHW[:, channels:], weights) if self.confidence else None
        )
        return resized_estimate(self.activation(level_B1HW), scale_B1HW, size)

    def level_norms(self) -> Mapping[int, Sequence[nn.LayerNorm]]:
        """Those of both pathways."""
        norms: dict[int, list[nn.LayerNorm]] = {}
        for path in (self.semantic, self.structural):
            for level, norm in () if path is None else zip(path.levels, path.norms, strict=True):
                assert isinstance(norm, nn.LayerNorm)
                norms.setdefault(level, []).append(norm)
        return norms

    def _fuse(self, features: TowerFeatures) -> Tensor:
        """(B, C, h, w) of both pathways."""
        semantic = self.semantic(features)
        if self.film is not None:
            semantic = self.film(semantic, features.context)
        paths = [self.semantic_conv(added(semantic))]
        if self.structural is not None and self.structural_conv is not None:
            paths.append(self.structural_conv(added(self.structural(features))))
        fused: Tensor = self.dropout(self.join(torch.cat(paths, dim=1)))
        return fused


def added(maps: Sequence[Tensor]) -> Tensor:
    """Their sum; keeps the memory order of tokens, channels last.

    Convolutions keep that order down to the outputs, which saves 5% of the head's time on a CPU.
    """
    return functools.reduce(torch.add, maps)

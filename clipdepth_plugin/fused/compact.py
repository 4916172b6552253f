"""The inference form of the compact decoder: `decoders/compact.py`, folded and composed.

Axes: L levels, B views, N patch tokens, D tower width, C channels, H W a map's size, h w the grid,
E the pixels' embedding, Y X the size of even pixels.
"""

from __future__ import annotations

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.blocks import ConvNormAct, resize
from clipdepth_plugin.decoders.compact import (
    CompactDecoder,
    DepthToSpace,
    NarrowFiLM,
    NormedLevels,
)
from clipdepth_plugin.decoders.guided import Guidance, even_pixels, pixel_blocks
from clipdepth_plugin.decoders.pathways import tokens_to_map
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.forms import Packing, fused_form
from clipdepth_plugin.fused.layers import Conv, Up
from clipdepth_plugin.fused.weights import Upsampling, exact, fold


@fused_form(CompactDecoder)
class FusedCompact(nn.Module):
    """Levels normalised, projected and summed in one launch for each pathway, then the maps."""

    def __init__(self, decoder: CompactDecoder, packing: Packing) -> None:
        super().__init__()
        self.film = None if decoder.film is None else _Film(decoder.film, packing)
        self.semantic = _Levels(decoder.semantic, packing)
        self.semantic_conv = _conv(decoder.semantic_conv, packing)
        self.structural: _Levels | None = None
        self.structural_conv: Conv | None = None
        if decoder.structural is not None and decoder.structural_conv is not None:
            self.structural = _Levels(decoder.structural, packing)
            self.structural_conv = _conv(decoder.structural_conv, packing)
        self.join = _conv(decoder.join, packing)
        steps = (step for step in decoder.up if isinstance(step, DepthToSpace))
        self.up = nn.Sequential(*(_up(step, packing) for step in steps))
        self.guidance = None if decoder.guidance is None else _Guidance(decoder.guidance, packing)
        self.activation = decoder.activation
        self.to_logit = Conv(fold(decoder.to_logit), None, packing)
        self.confidence = decoder.confidence
        mask = fold(decoder.to_mask)
        self.mask_weight = packing.pack(mask.weight[:, :, 0, 0])
        self.mask_bias = packing.pack(mask.bias)
        self.triton = packing.triton

    def forward(self, features: TowerFeatures, size: tuple[int, int] | None) -> DepthEstimate:
        """(B, 1, *size) float32 maps; ``size`` None gives 16 times the grid."""
        fused_BChw = self._fuse(features)
        x_BCHW = self.up(fused_BChw)
        embedded_BEYX = None
        if self.guidance is not None:
            assert features.pixels is not None
            even_B3HW = even_pixels(features.pixels, features.grid)
            x_BCHW = self.guidance(x_BCHW, fused_BChw, even_B3HW)
            embed = self.guidance.embed
            embedded_BEYX = None if embed is None else embed(even_B3HW)
        maps_BLHW = ops.convex_depth(
            x_BCHW,
            self._levels(self.to_logit(x_BCHW).float()),
            self.mask_weight,
            self.mask_bias,
            embedded_BEYX,
            activation=self.activation,
            triton=self.triton,
        )
        if size is not None:
            maps_BLHW = resize(maps_BLHW, size)
        log_scale_B1HW = maps_BLHW[:, 1:] if self.confidence else None
        return DepthEstimate(maps_BLHW[:, :1], log_scale_B1HW)

    def _levels(self, logits_BCHW: Tensor) -> Tensor:
        """What is mixed: the depth's level, and the logit of the scale where there is one."""
        channels = self.activation.channels
        if channels == 1:
            return logits_BCHW
        level_B1HW = self.activation.to_level(logits_BCHW[:, :channels])
        return torch.cat((level_B1HW, logits_BCHW[:, channels:]), dim=1)

    def _fuse(self, features: TowerFeatures) -> Tensor:
        """(B, C, h, w) of both pathways."""
        film_LBP = None if self.film is None else self.film(features.context)
        x_BCHW: Tensor = self.semantic_conv(self.semantic(features, film_LBP))
        paths = [x_BCHW]
        if self.structural is not None and self.structural_conv is not None:
            paths.append(self.structural_conv(self.structural(features, None)))
        fused: Tensor = self.join(*paths)
        return fused


class _Guidance(nn.Module):
    """`guided.Guidance`."""

    def __init__(self, guidance: Guidance, packing: Packing) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(guidance.stem.first, packing), _conv(guidance.stem.second, packing)
        )
        self.attention = copy.deepcopy(guidance.attention).requires_grad_(False).to(packing.dtype)
        self.embed: nn.Conv2d | None = None
        if guidance.likeness is not None:
            self.embed = copy.deepcopy(guidance.likeness.embed)
            self.embed.requires_grad_(False).to(packing.dtype)
        self.join = _conv(guidance.join, packing)
        self.smooth = _conv(guidance.smooth, packing)

    def forward(self, x_BCHW: Tensor, fused_BChw: Tensor, even_B3HW: Tensor) -> Tensor:
        """(B, C, 4h, 4w), guided by the picture's edges."""
        image_BCHW = self.stem(pixel_blocks(even_B3HW))
        seen_BCHW = torch.cat((image_BCHW, self.attention(fused_BChw, image_BCHW)), dim=1)
        guided_BCHW: Tensor = x_BCHW + self.smooth(self.join(x_BCHW, seen_BCHW))
        return guided_BCHW


class _Levels(nn.Module):
    """`compact.NormedLevels`, summed."""

    def __init__(self, levels: NormedLevels, packing: Packing) -> None:
        super().__init__()
        self.levels = levels.levels
        weights, biases = [], []
        for norm, project in zip(levels.norms, levels.projections, strict=True):
            weight, bias = _fold_layer_norm(norm, project)
            weights.append(weight)
            biases.append(bias)
        self.weight = packing.pack(torch.stack(weights))
        self.bias = packing.pack(torch.stack(biases))
        self.triton = packing.triton

    def forward(self, features: TowerFeatures, film_LBP: Tensor | None) -> Tensor:
        """(B, C, h, w)."""
        levels = [features.levels[level] for level in self.levels]
        summed_BNC = ops.normed_project(
            levels, film_LBP, self.weight, self.bias, triton=self.triton
        )
        return tokens_to_map(summed_BNC, features.grid)


class _Film(nn.Module):
    """`compact.NarrowFiLM`'s MLP."""

    def __init__(self, film: NarrowFiLM, packing: Packing) -> None:
        super().__init__()
        first, last = film.mlp[0], film.mlp[-1]
        assert isinstance(last, nn.Linear)
        weight, bias = _fold_layer_norm(film.norm, first)
        self.weight, self.bias = packing.pack(weight[None]), packing.pack(bias[None])
        self.last_weight = packing.pack(last.weight[None])
        self.last_bias = packing.pack(last.bias[None])
        self.levels = film.count
        self.triton = packing.triton

    def forward(self, context_BD: Tensor) -> Tensor:
        """(L, B, 2 * C) gamma and beta of each level."""
        weights = (self.weight, self.bias, self.last_weight, self.last_bias)
        parameters_1BP = ops.film_mlp(
            context_BD, *weights, activation="gelu", normed=True, triton=self.triton
        )
        return rearrange(parameters_1BP, "1 b (l p) -> l b p", l=self.levels)


def _fold_layer_norm(norm: nn.Module, linear: nn.Module) -> tuple[Tensor, Tensor]:
    """A linear layer with the scale and shift of the layer norm before it; float64."""
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    weight, bias = exact(linear.weight), exact(linear.bias)
    return weight * exact(norm.weight), bias + weight @ exact(norm.bias)


def _conv(block: ConvNormAct, packing: Packing) -> Conv:
    return Conv(fold(block.conv, block.norm), "gelu", packing)


def _up(step: DepthToSpace, packing: Packing) -> Up:
    smooth = fold(step.smooth.conv, step.smooth.norm)
    return Up(Upsampling.of_expanded(step.expand), smooth, "gelu", packing)

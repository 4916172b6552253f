"""The compact heads' ops: normalised levels, convex upsampling.

Axes: L levels, B views, N patch tokens, D tower width, C channels, H W a map's size, h w the grid.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.compact import (
    CONVEX_FACTOR,
    CompactDecoder,
    added,
    convex_upsample,
    convex_weights,
    modulate,
)
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.compact import FusedCompact
from clipdepth_plugin.fused.forms import Packing
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.kernel_op import Function, Op, inputs_of


def compact_ops(head: DepthHead, features: TowerFeatures) -> Iterator[Op]:
    """The ops at the dearest of their places, or one of them.

    Args:
        head: With the compact decoder, in eval mode.
        features: In float32, where the head is.
    """
    decoder = head.decoder
    assert isinstance(decoder, CompactDecoder)
    seen = inputs_of(head, features, {"mask": decoder.to_mask})
    film: Any = decoder.film
    film_LBP = rearrange(film.mlp(film.norm(features.context)), "b (l p) -> l b p", l=film.count)
    levels = {level: features.levels[level] for level in decoder.semantic.levels}
    x_BCHW = seen["mask"][0]

    yield Op(
        "normed_project",
        "the semantic levels",
        (levels, film_LBP, features.grid),
        lambda d: functools.partial(_sum_levels, d),
        _normed_project,
        float32=frozenset({1}),
    )
    yield Op(
        "convex_depth",
        "the depth output",
        (x_BCHW, decoder.metres.to_level(decoder.to_logit(x_BCHW)[:, : decoder.metres.channels])),
        lambda d: functools.partial(_convex, d),
        _convex_depth,
        float32=frozenset({1}),
    )


def _sum_levels(
    d: CompactDecoder, levels: Mapping[int, Tensor], film_LBP: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The semantic levels normalised, projected, modulated with given parameters, summed."""
    maps = d.semantic(TowerFeatures(levels, None, grid))
    return added(modulate(maps, film_LBP))


def _normed_project(d: CompactDecoder, packing: Packing) -> Function:
    semantic = FusedCompact(d, packing).semantic
    return lambda levels, film_LBP, grid: semantic(TowerFeatures(levels, None, grid), film_LBP)


def _convex(d: CompactDecoder, x_BCHW: Tensor, level_B1HW: Tensor) -> Tensor:
    weights_BHWKR = convex_weights(d.to_mask(x_BCHW).float(), CONVEX_FACTOR)
    metres: Tensor = d.metres(convex_upsample(level_B1HW.float(), weights_BHWKR, CONVEX_FACTOR))
    return metres


def _convex_depth(d: CompactDecoder, packing: Packing) -> Function:
    fused = FusedCompact(d, packing)
    return lambda x_BCHW, level_B1HW: ops.convex_depth(
        x_BCHW,
        level_B1HW,
        fused.mask_weight,
        fused.mask_bias,
        metres=d.metres,
        triton=packing.triton,
    )

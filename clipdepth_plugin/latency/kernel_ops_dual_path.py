"""The published head's ops: FiLM, projections, gated skips, convolutions, the depth output.

Axes: L levels, B views, N patch tokens, D tower width, C channels, H W a map's size, h w the grid.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.decoders.dual_path import DualPathDecoder
from clipdepth_plugin.decoders.pathways import tokens_to_map
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.dual_path import Projections
from clipdepth_plugin.fused.dual_path import _Readout as Readout
from clipdepth_plugin.fused.forms import Packing
from clipdepth_plugin.fused.layers import Conv, GatedJoin, Up
from clipdepth_plugin.fused.weights import Upsampling, fold
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.kernel_cases import picture_size
from clipdepth_plugin.latency.kernel_op import Function, Op, inputs_of


def dual_path_ops(head: DepthHead, features: TowerFeatures) -> Iterator[Op]:
    """The ops at the dearest of their places, or one of them.

    Args:
        head: With the published decoder, in eval mode.
        features: In float32, where the head is.
    """
    decoder, size = head.decoder, picture_size(features.grid)
    assert isinstance(decoder, DualPathDecoder)
    at = len(decoder.fusion) - 2  # the largest map with both skips
    stage: Any = decoder.fusion[at]
    seen = inputs_of(
        head,
        features,
        {"stage": stage, "join": stage.join, "up": decoder.fusion[-1].get_submodule("up"),
         "readout": decoder.readout},
    )  # fmt: skip
    _, semantic_BChw, structural_BCHW = seen["stage"]
    u_BCHW, skips_BCHW = seen["join"][0].tensor_split([len(stage.semantic_gate.conv.weight)], 1)
    read = (*decoder.semantic.levels, *(decoder.structural.levels if decoder.structural else ()))
    levels = [features.levels[level] for level in read]
    films: Any = decoder.semantic.film
    film_LBP = torch.stack([film.mlp(features.context) for film in films])

    yield Op(
        "film_mlp",
        "all semantic levels",
        (features.context,),
        lambda d: lambda context_BD: [film.mlp(context_BD) for film in d.semantic.film],
        _film_mlp,
    )
    yield Op(
        "film_project",
        "all levels of both pathways",
        (levels, film_LBP, features.grid),
        lambda d: functools.partial(_project, d),
        _film_project,
        float32=frozenset({1}),
    )
    yield Op(
        "gated_skips",
        f"fusion stage {at}",
        (u_BCHW, semantic_BChw, structural_BCHW),
        lambda d: functools.partial(_gate, d.fusion[at]),
        lambda d, packing: _gated_skips(d.fusion[at], packing),
    )
    yield Op(
        "join_conv",
        f"fusion stage {at}",
        (u_BCHW.contiguous(), skips_BCHW.contiguous()),
        lambda d: lambda u, skips: d.fusion[at].join(torch.cat((u, skips), dim=1)),
        lambda d, packing: Conv(
            fold(d.fusion[at].join.conv, d.fusion[at].join.norm), "relu", packing
        ),
    )
    yield Op(
        "up_conv",
        "the last fusion stage",
        seen["up"],
        lambda d: d.fusion[-1].up,
        lambda d, packing: _up_conv(d.fusion[-1].up, packing),
    )
    yield Op(
        "depth_readout",
        "the depth output",
        (seen["readout"][0], size),
        lambda d: lambda x_BCHW, size: d.readout(x_BCHW, size).metres,
        lambda d, packing: Readout(d.readout, packing),
    )


def _project(d: DualPathDecoder, levels: list[Tensor], film_LBP: Tensor, grid: Any) -> list[Tensor]:
    """FiLM with given parameters, then the projections."""
    structural: Any = [] if d.structural is None else d.structural.projections
    maps = []
    for i, project in enumerate((*d.semantic.projections, *structural)):
        x_BND = levels[i]
        if i < len(film_LBP):
            gamma_B1D, beta_B1D = film_LBP[i, :, None].chunk(2, dim=-1)
            x_BND = gamma_B1D * x_BND + beta_B1D
        maps.append(project(tokens_to_map(x_BND, grid)))
    return maps


def _film_mlp(d: DualPathDecoder, packing: Packing) -> Function:
    mlps = Projections(d.semantic, d.structural, packing).mlps
    return lambda context_BD: ops.film_mlp(
        context_BD, *mlps, activation="relu", triton=packing.triton
    )


def _film_project(d: DualPathDecoder, packing: Packing) -> Function:
    own = Projections(d.semantic, d.structural, packing)

    def project(levels: list[Tensor], film_LBP: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        maps = ops.film_project(
            levels, film_LBP, own.weight, own.bias, own.channels, triton=packing.triton
        )
        return [tokens_to_map(x_BNC, grid) for x_BNC in maps]

    return project


def _gate(stage: Any, u_BCHW: Tensor, semantic_BChw: Tensor, skip_BCHW: Tensor) -> list[Tensor]:
    resized_BCHW = resize(semantic_BChw, (u_BCHW.shape[-2], u_BCHW.shape[-1]))
    return [stage.semantic_gate(resized_BCHW, u_BCHW), stage.structural_gate(skip_BCHW, u_BCHW)]


def _gated_skips(stage: Any, packing: Packing) -> Function:
    gates = [fold(stage.semantic_gate.conv), fold(stage.structural_gate.conv)]
    own = GatedJoin(gates, fold(stage.join.conv, stage.join.norm), packing)
    return lambda u, semantic, skip: ops.gated_skips(
        u, semantic, skip, own.gate_weight, own.gate_bias, triton=packing.triton
    )


def _up_conv(up: Any, packing: Packing) -> Function:
    smooth = fold(up.smooth.conv, up.smooth.norm)
    return Up(Upsampling.of_transposed(up.upsample), smooth, "relu", packing)

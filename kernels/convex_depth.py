"""Convex upsampling to depth in one pass: mask convolution, likeness, softmax, mix, activation.

As ``decoders/convex.py`` does it; the masks of 9 R^2 channels are never written. A confidence's
scale is mixed beside the depth, by the same mask. ``guided.likeness_logits`` are added to it: with
p a pixel's embedding and q the mean of a block's, 2 p q - q^2.

Axes: B views, C channels, H W the coarse map's size, Y X = R H, R W the fine map's, L the maps that
are mixed, R the factor, K the 9 neighbours, E the pixels' embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.decoders.convex import CONVEX_FACTOR, convex_upsample, convex_weights
from clipdepth_plugin.decoders.guided import likeness_logits
from clipdepth_plugin.decoders.readout import SCALE_RANGE, DepthActivation, bounded_log_scale
from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import DEPTH_ACTIVATIONS, dot_add, to_depth
from clipdepth_plugin.kernels.dispatch import check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl

BLOCK_T = 32
"""Positions of a tile."""


def convex_depth(
    x_BCHW: Tensor,
    level_BLHW: Tensor,
    weight_MC: Tensor,
    bias_M: Tensor,
    embedded_BEYX: Tensor | None = None,
    *,
    activation: DepthActivation,
    triton: bool | None = None,
) -> Tensor:
    """Depth, and the scale of its error, at ``CONVEX_FACTOR`` times the map.

    Args:
        x_BCHW: (B, C, H, W), channels last: what the mask is predicted from.
        level_BLHW: (B, L, H, W), what is mixed: the depth's level; with L = 2 the logit of the
            scale behind it.
        weight_MC: (9 * R^2, C) of the mask's convolution; neighbours before sub-positions.
        bias_M: (9 * R^2,).
        embedded_BEYX: (B, E, R * H, R * W), channels last: the pixels' embeddings, whose likeness
            is added to the mask's logits.
        activation: From logits to depth; it has no weights.
        triton: See ``ops``.

    Returns:
        (B, L, R * H, R * W) float32: depth, then ``readout.bounded_log_scale``.
    """
    batch, channels, height, width = x_BCHW.shape
    masks = 9 * CONVEX_FACTOR**2
    expected = {
        "level": (level_BLHW, (batch, 2 if level_BLHW.shape[1] > 1 else 1, height, width)),
        "weight": (weight_MC, (masks, channels)),
        "bias": (bias_M, (masks,)),
    }
    if embedded_BEYX is not None:
        fine = (CONVEX_FACTOR * height, CONVEX_FACTOR * width)
        expected["embedded"] = (embedded_BEYX, (batch, embedded_BEYX.shape[1], *fine))
    check_shapes("convex_depth", expected)
    tensors = (x_BCHW, level_BLHW, weight_MC, bias_M, embedded_BEYX)
    if use_triton("convex_depth", x_BCHW.device, triton, obstacle=forward_only(tensors)):
        kind, low, high = activation.kind, activation.log_low, activation.log_high
        return convex_depth_triton(*tensors, kind, low, high)
    mask_BMHW = F.linear(x_BCHW.permute(0, 2, 3, 1), weight_MC, bias_M).permute(0, 3, 1, 2)
    if embedded_BEYX is not None:
        mask_BMHW = mask_BMHW + likeness_logits(embedded_BEYX)
    weights = convex_weights(mask_BMHW)
    mixed = [convex_upsample(level_B1HW, weights) for level_B1HW in level_BLHW.split(1, dim=1)]
    scales = [bounded_log_scale(logits_B1HW) for logits_B1HW in mixed[1:]]
    return torch.cat([activation(mixed[0]), *scales], dim=1).float()


def _empty(level_BLHW: Tensor) -> Tensor:
    batch, maps, height, width = level_BLHW.shape
    shape = (batch, maps, CONVEX_FACTOR * height, CONVEX_FACTOR * width)
    return level_BLHW.new_empty(shape, dtype=torch.float32)


@launch.kernel_op("convex_depth")
def convex_depth_triton(
    x_BCHW: Tensor,
    level_BLHW: Tensor,
    weight_MC: Tensor,
    bias_M: Tensor,
    embedded_BEYX: Tensor | None,
    activation: str,
    log_low: float,
    log_high: float,
) -> Tensor:
    """The kernel's launch."""
    out_BLHW = _empty(level_BLHW)
    if out_BLHW.numel() == 0:
        return out_BLHW
    batch, channels, height, width = x_BCHW.shape
    positions = batch * height * width
    # Products in float32, and likeness, leave no registers for a larger tile.
    exact = x_BCHW.dtype == torch.float32
    alike = embedded_BEYX is not None
    block_m = 16 if exact or alike else BLOCK_T
    block_k = 32 if exact else 64
    launch.launchable(_convex_depth_fwd_kernel)[(launch.cdiv(positions, block_m),)](
        launch.channels_last(x_BCHW), level_BLHW.contiguous(),
        weight_MC.contiguous(), bias_M.contiguous(),
        x_BCHW if embedded_BEYX is None else launch.channels_last(embedded_BEYX), out_BLHW,
        positions, height, width, channels, 0 if embedded_BEYX is None else embedded_BEYX.shape[1],
        log_low, log_high, *map(math.log, SCALE_RANGE),
        ACTIVATION=DEPTH_ACTIVATIONS[activation],
        SCALED=level_BLHW.shape[1] > 1,
        LIKENESS=alike,
        FACTOR=CONVEX_FACTOR,
        **launch.products(x_BCHW, "convolution"),
        BLOCK_M=block_m,
        BLOCK_K=min(launch.power_of_two(channels), block_k),
        num_warps=8 if exact and alike else 4,  # 4 spill registers
        num_stages=2,
    )  # fmt: skip
    return out_BLHW


convex_depth_triton.register_fake(lambda _x, level, *_: _empty(level))


@launch.device_function
def fine_rows(rows, columns, r, width, FACTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """(M, R): where the fine positions of coarse ones lie in maps below each other."""
    fine_row = rows[:, None] * FACTOR + r[None, :] // FACTOR
    return fine_row * (width * FACTOR) + columns[:, None] * FACTOR + r[None, :] % FACTOR


@launch.device_function
def likeness(embedded_ptr, pixels, near, embedding, inside):  # type: ignore[no-untyped-def]
    """(M, R) logits of pixels' likeness to a block, whose pixels are ``near``."""
    logits = tl.zeros(pixels.shape, dtype=tl.float32)
    for e in range(embedding):
        p = tl.load(embedded_ptr + pixels * embedding + e, mask=inside, other=0).to(tl.float32)
        block = tl.load(embedded_ptr + near * embedding + e, mask=inside, other=0)
        q = (tl.sum(block.to(tl.float32), 1) / block.shape[1])[:, None]
        logits += q * (2 * p - q)
    return logits


def _convex_depth_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, level_ptr, weight_ptr, bias_ptr, embedded_ptr, out_ptr,
    positions, height, width, channels, embedding,
    log_low, log_high, scale_low, scale_high,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr, LIKENESS: tl.constexpr, FACTOR: tl.constexpr,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    fine: tl.constexpr = FACTOR * FACTOR
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.arange(0, fine)
    y, x = m // width % height, m % width
    highest = tl.full((BLOCK_M, fine), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M, fine), dtype=tl.float32)
    mixed, mixed_scale = total, total
    long_m = m.to(tl.int64)[:, None]
    plane, maps = height * width, 2 if SCALED else 1
    view = (m // plane).to(tl.int64)
    pixels = fine_rows(view * height + y, x, r, width, FACTOR)
    inside = (m < positions)[:, None] & (r >= 0)[None, :]
    for neighbour in range(9):
        mask_logit = tl.zeros((BLOCK_M, fine), dtype=tl.float32)
        for start in range(0, channels, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask = (m < positions)[:, None] & (k < channels)[None, :]
            tile = tl.load(x_ptr + long_m * channels + k[None, :], mask=mask, other=0)
            weight = tl.load(
                weight_ptr + (neighbour * fine + r)[None, :] * channels + k[:, None],
                mask=(k < channels)[:, None],
                other=0,
            )
            mask_logit = dot_add(tile, weight, mask_logit, DOT_DTYPE, PRECISION)
        mask_logit += tl.load(bias_ptr + neighbour * fine + r).to(tl.float32)[None, :]
        # Positions outside the map repeat its border.
        row = tl.minimum(tl.maximum(y + neighbour // 3 - 1, 0), height - 1)
        column = tl.minimum(tl.maximum(x + neighbour % 3 - 1, 0), width - 1)
        if LIKENESS:
            near = fine_rows(view * height + row, column, r, width, FACTOR)
            mask_logit += likeness(embedded_ptr, pixels, near, embedding, inside)
        at = view * maps * plane + row * width + column
        level = tl.load(level_ptr + at, mask=m < positions, other=0).to(tl.float32)
        # Online softmax: the sums so far are scaled to the new maximum.
        new_highest = tl.maximum(highest, mask_logit)
        share = tl.exp(mask_logit - new_highest)
        before = tl.exp(highest - new_highest)
        total = total * before + share
        mixed = mixed * before + share * level[:, None]
        if SCALED:
            scale = tl.load(level_ptr + at + plane, mask=m < positions, other=0).to(tl.float32)
            mixed_scale = mixed_scale * before + share * scale[:, None]
        highest = new_highest
    at = fine_rows(view * maps * height + y, x, r, width, FACTOR)
    tl.store(out_ptr + at, to_depth(mixed / total, log_low, log_high, ACTIVATION), mask=inside)
    if SCALED:
        log_scale = scale_low + (scale_high - scale_low) * tl.sigmoid(mixed_scale / total)
        tl.store(out_ptr + at + plane * FACTOR * FACTOR, log_scale, mask=inside)

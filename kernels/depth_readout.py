"""The depth output in one pass: Conv 3x3 - ReLU - Conv to one channel - activation - resize.

Axes: B views, C channels, K hidden channels, H W the map's size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.decoders.readout import DepthActivation
from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import DEPTH_ACTIVATIONS, dot_add, relu, sample_axis, to_depth
from clipdepth_plugin.kernels.dispatch import check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl

SIDE = 16
"""Positions of a tile's side, with what its convolution and interpolation reach beyond it."""

CELLS = SIDE - 3
"""Of them, those whose outputs the tile writes."""


def depth_readout(
    x_BCHW: Tensor,
    weight: Tensor,
    bias_K: Tensor,
    last_weight: Tensor,
    last_bias_1: Tensor,
    *,
    activation: DepthActivation,
    size: tuple[int, int] | None = None,
    triton: bool | None = None,
) -> Tensor:
    """Depth from the decoder's last map.

    Args:
        x_BCHW: (B, C, H, W), channels last.
        weight: (K, C, 3, 3), channels last, any norm folded in.
        bias_K: (K,).
        last_weight: (1, K, 3, 3), channels last.
        last_bias_1: (1,).
        activation: From logits to depth; it has no weights.
        size: Output (H, W); None keeps the map's.
        triton: See ``ops``.

    Returns:
        (B, 1, *size) float32 depth.
    """
    hidden = bias_K.shape[0]
    expected = {
        "weight": (weight, (hidden, x_BCHW.shape[1], 3, 3)),
        "last weight": (last_weight, (1, hidden, 3, 3)),
        "last bias": (last_bias_1, (1,)),
    }
    check_shapes("depth_readout", expected)
    height, width = x_BCHW.shape[-2:] if size is None else size
    tensors = (x_BCHW, weight, bias_K, last_weight, last_bias_1)
    if use_triton("depth_readout", x_BCHW.device, triton, obstacle=forward_only(tensors)):
        kind, low, high = activation.kind, activation.log_low, activation.log_high
        return depth_readout_triton(*tensors, kind, low, high, [height, width])
    hidden_BKHW = F.relu_(F.conv2d(x_BCHW, weight, bias_K, padding=1))
    logits_B1HW = F.conv2d(hidden_BKHW, last_weight, last_bias_1, padding=1).float()
    return resize(activation(logits_B1HW), (height, width))


def _empty(x_BCHW: Tensor, size: list[int]) -> Tensor:
    return x_BCHW.new_empty((x_BCHW.shape[0], 1, *size), dtype=torch.float32)


@launch.kernel_op("depth_readout")
def depth_readout_triton(
    x_BCHW: Tensor,
    weight: Tensor,
    bias_K: Tensor,
    last_weight: Tensor,
    last_bias_1: Tensor,
    activation: str,
    log_low: float,
    log_high: float,
    size: list[int],
) -> Tensor:
    """The kernel's launch."""
    out_B1HW = _empty(x_BCHW, size)
    if out_B1HW.numel() == 0:
        return out_B1HW
    batch, channels, height, width = x_BCHW.shape
    hidden = bias_K.shape[0]
    row_scale, column_scale = height / size[0], width / size[1]
    grid = (launch.cdiv(height, CELLS), launch.cdiv(width, CELLS), batch)
    launch.launchable(_depth_readout_fwd_kernel)[grid](
        launch.channels_last(x_BCHW), launch.channels_last(weight), bias_K.contiguous(),
        launch.channels_last(last_weight), last_bias_1, out_B1HW,
        height, width, size[0], size[1], channels, hidden,
        row_scale, column_scale,
        # Outputs that a tile's cells can hold, with some for what is beyond the border of the map
        # and for rounding.
        math.ceil((CELLS + 0.5) / row_scale) + 3,
        math.ceil((CELLS + 0.5) / column_scale) + 3,
        log_low, log_high,
        ACTIVATION=DEPTH_ACTIVATIONS[activation],
        **launch.products(x_BCHW, "convolution"),
        BLOCK_C=min(launch.power_of_two(channels), 32),
        BLOCK_K=launch.power_of_two(hidden),
        SIDE=SIDE,
        num_warps=8,
        num_stages=2,
    )  # fmt: skip
    return out_B1HW


depth_readout_triton.register_fake(lambda x, *rest: _empty(x, rest[-1]))


def _depth_readout_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, last_weight_ptr, last_bias_ptr, out_ptr,
    height, width, out_height, out_width, channels, hidden,
    row_scale, column_scale, out_rows, out_columns,
    log_low, log_high,
    ACTIVATION: tl.constexpr, DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    # SIDE x SIDE positions hold the hidden map; one ring less, depth; the last row and column of
    # these only as the far ends of the cells that outputs are interpolated in.
    cells: tl.constexpr = SIDE - 3
    top, left = tl.program_id(0) * cells, tl.program_id(1) * cells
    view = tl.program_id(2).to(tl.int64)
    p = tl.arange(0, SIDE * SIDE)
    hidden_MK = hidden_tile(
        x_ptr + view * height * width * channels, weight_ptr, bias_ptr,
        top - 1 + p // SIDE, left - 1 + p % SIDE, height, width, channels, hidden,
        DOT_DTYPE, PRECISION, BLOCK_C, BLOCK_K, SIDE,
    )  # fmt: skip
    # Nine taps at once, each where it is read; then every position gathers its neighbours'.
    k, tap = tl.arange(0, BLOCK_K), tl.arange(0, 16)
    mask = (k < hidden)[:, None] & (tap < 9)[None, :]
    last_KT = tl.load(last_weight_ptr + tap[None, :] * hidden + k[:, None], mask=mask, other=0)
    taps_MT = tl.zeros((SIDE * SIDE, 16), dtype=tl.float32)
    taps_MT = dot_add(hidden_MK, last_KT, taps_MT, DOT_DTYPE, PRECISION)
    offset_T = tl.where(tap < 9, (tap // 3 - 1) * SIDE + tap % 3 - 1, 0)
    source_MT = tl.minimum(tl.maximum(p[:, None] + offset_T[None, :], 0), SIDE * SIDE - 1)
    gathered_MT = tl.gather(taps_MT, source_MT, 0)
    logit_M = tl.sum(tl.where((tap < 9)[None, :], gathered_MT, 0.0), 1)
    logit_M += tl.load(last_bias_ptr).to(tl.float32)
    depth_M = to_depth(logit_M, log_low, log_high, ACTIVATION)
    first_row = first_output(top, row_scale)
    first_column = first_output(left, column_scale)
    for start in range(0, out_rows * out_columns, SIDE * SIDE):
        at = start + p
        y, x = first_row + at // out_columns, first_column + at % out_columns
        y0, y1, down = sample_axis(y, row_scale, height)
        x0, x1, across = sample_axis(x, column_scale, width)
        mine = (y0 >= top) & (y0 < top + cells) & (x0 >= left) & (x0 < left + cells)
        mine = mine & (y < out_height) & (x < out_width)
        y0, y1 = tl.where(mine, y0 - top + 1, 0) * SIDE, tl.where(mine, y1 - top + 1, 0) * SIDE
        x0, x1 = tl.where(mine, x0 - left + 1, 0), tl.where(mine, x1 - left + 1, 0)
        upper = tl.gather(depth_M, y0 + x0, 0) * (1 - across)
        upper += tl.gather(depth_M, y0 + x1, 0) * across
        lower = tl.gather(depth_M, y1 + x0, 0) * (1 - across)
        lower += tl.gather(depth_M, y1 + x1, 0) * across
        depth = upper * (1 - down) + lower * down
        tl.store(out_ptr + (view * out_height + y) * out_width + x, depth, mask=mine)


@launch.device_function
def first_output(cell, scale):  # type: ignore[no-untyped-def]
    """An output at or just before the first that is interpolated in ``cell``."""
    first = tl.maximum(((cell + 0.5) / scale - 0.5).to(tl.int32) - 1, 0)
    return tl.where(cell == 0, 0, first)


@launch.device_function
def hidden_tile(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y, x, height, width, channels, hidden,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """(M, K) of the first convolution and its ReLU, zero outside the map as its padding is."""
    k = tl.arange(0, BLOCK_K)
    out = tl.zeros((SIDE * SIDE, BLOCK_K), dtype=tl.float32)
    steps = tl.cdiv(channels, BLOCK_C)
    for step in range(9 * steps):
        tap, c = step // steps, step % steps * BLOCK_C + tl.arange(0, BLOCK_C)
        row, column = y + tap // 3 - 1, x + tap % 3 - 1
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        mask = inside[:, None] & (c < channels)[None, :]
        at = (row * width + column)[:, None] * channels + c[None, :]
        tile = tl.load(x_ptr + at, mask=mask, other=0)
        at = (k[None, :] * 9 + tap) * channels + c[:, None]
        mask = (c < channels)[:, None] & (k < hidden)[None, :]
        weight = tl.load(weight_ptr + at, mask=mask, other=0)
        out = dot_add(tile, weight, out, DOT_DTYPE, PRECISION)
    bias = tl.load(bias_ptr + k, mask=k < hidden, other=0).to(tl.float32)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return tl.where(
        inside[:, None],
        relu(out + bias[None, :]),
        0.0,
    )

"""Doubling the size: a transposed 2x2 convolution and the 3x3 one after it, as four phases.

Each of the output's four phases is a 2x2 convolution of the small map (``fused.weights.compose_up``
makes the weights, exact, borders included): 4 I O products a position in place of I O + 9 O^2.

Axes: B views, I O input and output channels, h w the small map, a b the phase, r c a kernel's rows
and columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import dot_add, relu
from clipdepth_plugin.kernels.dispatch import check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl


def up_conv(
    x_BIhw: Tensor, weight_PIrc: Tensor, bias_PEO: Tensor, *, relu: bool, triton: bool | None = None
) -> Tensor:
    """A map of twice the size.

    Args:
        x_BIhw: (B, I, h, w), channels last.
        weight_PIrc: (4 * O, I, 2, 2), channels last; P runs over (a, b, O).
        bias_PEO: (4, 4, O): of the phase (a, b), and whether the output is in the map's outermost
            row and column.
        relu: Apply it.
        triton: See ``ops``.

    Returns:
        (B, O, 2h, 2w), channels last, in ``x_BIhw``'s dtype.
    """
    channels = bias_PEO.shape[-1]
    expected = {
        "weight": (weight_PIrc, (4 * channels, x_BIhw.shape[1], 2, 2)),
        "bias": (bias_PEO, (4, 4, channels)),
    }
    check_shapes("up_conv", expected)
    inputs = (x_BIhw, weight_PIrc, bias_PEO)
    if use_triton("up_conv", x_BIhw.device, triton, obstacle=forward_only(inputs)):
        return up_conv_triton(*inputs, relu)
    # One convolution for all phases; then their edges are corrected, and they are interleaved.
    batch, _, height, width = x_BIhw.shape
    inside_P = bias_PEO[:, 0].flatten()
    y = F.conv2d(x_BIhw, weight_PIrc, inside_P, padding=1)
    y_BabOHW = y.unflatten(1, (2, 2, channels))
    edge_abrcO = (bias_PEO - bias_PEO[:, :1]).unflatten(0, (2, 2)).unflatten(2, (2, 2))
    _add_edges(y_BabOHW, edge_abrcO)
    out_BOHW = launch.empty_map(y, (batch, channels, 2 * height, 2 * width))
    for a in range(2):
        for b in range(2):
            # Of a padded 2x2 convolution's h + 1 rows, phase a has the first or the last h.
            phase = y_BabOHW[:, a, b, :, a : a + height, b : b + width]
            out_BOHW[:, :, a::2, b::2] = phase
    return F.relu_(out_BOHW) if relu else out_BOHW


def _add_edges(y_BabOHW: Tensor, edge_abrcO: Tensor) -> None:
    """Adds what the outermost rows and columns have in place of the inner bias."""
    for a in range(2):
        for b in range(2):
            y_BOHW, edge_rcO = y_BabOHW[:, a, b], edge_abrcO[a, b]
            row, column = (-1 if a else 0), (-1 if b else 0)
            y_BOHW[:, :, row, :] += edge_rcO[1, 0][:, None]
            y_BOHW[:, :, :, column] += edge_rcO[0, 1][:, None]
            corner_O = edge_rcO[1, 1] - edge_rcO[1, 0] - edge_rcO[0, 1]
            y_BOHW[:, :, row, column] += corner_O


def _empty(x_BIhw: Tensor, bias_PEO: Tensor) -> Tensor:
    batch, _, height, width = x_BIhw.shape
    return launch.empty_map(x_BIhw, (batch, bias_PEO.shape[-1], 2 * height, 2 * width))


@launch.kernel_op("up_conv")
def up_conv_triton(x_BIhw: Tensor, weight_PIrc: Tensor, bias_PEO: Tensor, relu: bool) -> Tensor:
    """The kernel's launch."""
    out_BOHW = _empty(x_BIhw, bias_PEO)
    if out_BOHW.numel() == 0:
        return out_BOHW
    batch, in_channels, height, width = x_BIhw.shape
    channels, positions = bias_PEO.shape[-1], batch * height * width
    tiles = launch.choose_tiles(positions, channels, x_BIhw, copies=4)
    grid = (launch.cdiv(positions, tiles.m), launch.cdiv(channels, tiles.n), 4)
    launch.launchable(_up_conv_fwd_kernel)[grid](
        launch.channels_last(x_BIhw), launch.channels_last(weight_PIrc),
        bias_PEO.contiguous(), out_BOHW,
        positions, height, width, in_channels, channels,
        RELU=relu,
        **launch.products(x_BIhw, "convolution"),
        **tiles.arguments(),
    )  # fmt: skip
    return out_BOHW


up_conv_triton.register_fake(lambda x, _weight, bias, _relu: _empty(x, bias))


def _up_conv_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    positions, height, width, in_channels, channels,
    RELU: tl.constexpr, DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    phase = tl.program_id(2)
    a, b = phase // 2, phase % 2
    y, x = m // width % height, m % width
    weight_rows = weight_ptr + (phase * channels + n).to(tl.int64)[None, :] * 4 * in_channels
    out = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    steps = tl.cdiv(in_channels, BLOCK_K)
    for step in range(4 * steps):
        tap, k = step // steps, step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        down, right = a - 1 + tap // 2, b - 1 + tap % 2
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        source = (m + down * width + right).to(tl.int64)[:, None] * in_channels + k[None, :]
        mask = (inside & (m < positions))[:, None] & (k < in_channels)[None, :]
        tile = tl.load(x_ptr + source, mask=mask, other=0)
        weight_mask = (k < in_channels)[:, None] & (n < channels)[None, :]
        weight = tl.load(weight_rows + (tap * in_channels + k)[:, None], mask=weight_mask, other=0)
        out = dot_add(tile, weight, out, DOT_DTYPE, PRECISION)
    # The map's outermost row is its first in phases with a = 0, its last in the others.
    at_row, at_column = y == a * (height - 1), x == b * (width - 1)
    edge = at_row.to(tl.int32) * 2 + at_column.to(tl.int32)
    mask = (m < positions)[:, None] & (n < channels)[None, :]
    bias_rows = bias_ptr + (phase * 4 + edge)[:, None] * channels
    out += tl.load(bias_rows + n[None, :], mask=mask, other=0).to(tl.float32)
    if RELU:
        out = relu(out)
    rows = (m // (height * width) * height + y).to(tl.int64) * 2 + a
    at = (rows * 2 * width + 2 * x + b)[:, None] * channels + n[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)

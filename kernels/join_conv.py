"""3x3 convolution over the implicit concatenation of a map and a (smaller, resized) one.

act(W (x | resize(skip)) + b + residual): the concatenated map is two column blocks of one weight
matrix, accumulated one after the other, and the resized map is sampled where it is needed; neither
is written.

Axes: B views, I K channels of the map and of the skip, O output channels, H W the map's size, h w
the skip's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import dot_add, relu, sample
from clipdepth_plugin.kernels.dispatch import Shapes, check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl


def join_conv(
    x_BIHW: Tensor,
    skip_BKhw: Tensor | None,
    weight: Tensor,
    bias_O: Tensor,
    *,
    residual_BOHW: Tensor | None = None,
    relu: bool,
    triton: bool | None = None,
) -> Tensor:
    """A 3x3 convolution of one or two maps.

    Args:
        x_BIHW: (B, I, H, W), channels last.
        skip_BKhw: (B, K, h, w), channels last, resized bilinearly to (H, W); or None.
        weight: (O, I + K, 3, 3), channels last.
        bias_O: (O,).
        residual_BOHW: Added before the activation.
        relu: Apply it.
        triton: See ``ops``.

    Returns:
        (B, O, H, W), channels last, in ``x_BIHW``'s dtype.
    """
    batch, channels, height, width = x_BIHW.shape
    skip_channels = 0 if skip_BKhw is None else skip_BKhw.shape[1]
    out_channels = bias_O.shape[0]
    expected: Shapes = {"weight": (weight, (out_channels, channels + skip_channels, 3, 3))}
    if skip_BKhw is not None:
        expected["skip"] = (skip_BKhw, (batch, *skip_BKhw.shape[1:]))
    if residual_BOHW is not None:
        expected["residual"] = (residual_BOHW, (batch, out_channels, height, width))
    check_shapes("join_conv", expected)
    tensors = (x_BIHW, skip_BKhw, weight, bias_O, residual_BOHW)
    if use_triton("join_conv", x_BIHW.device, triton, obstacle=forward_only(tensors)):
        return join_conv_triton(*tensors, relu)
    if skip_BKhw is not None:
        x_BIHW = torch.cat((x_BIHW, resize(skip_BKhw, (height, width))), dim=1)
    y_BOHW = F.conv2d(x_BIHW, weight, bias_O, padding=1)
    if residual_BOHW is not None:
        y_BOHW = y_BOHW.add_(residual_BOHW)
    return F.relu_(y_BOHW) if relu else y_BOHW


def _empty(x_BIHW: Tensor, bias_O: Tensor) -> Tensor:
    batch, _, height, width = x_BIHW.shape
    return launch.empty_map(x_BIHW, (batch, bias_O.shape[0], height, width))


@launch.kernel_op("join_conv")
def join_conv_triton(
    x_BIHW: Tensor,
    skip_BKhw: Tensor | None,
    weight: Tensor,
    bias_O: Tensor,
    residual_BOHW: Tensor | None,
    relu: bool,
) -> Tensor:
    """The kernel's launch."""
    out_BOHW = _empty(x_BIHW, bias_O)
    if out_BOHW.numel() == 0:
        return out_BOHW
    batch, channels, height, width = x_BIHW.shape
    skip = x_BIHW if skip_BKhw is None else skip_BKhw
    low_height, low_width = skip.shape[-2:]
    positions, out_channels = batch * height * width, bias_O.shape[0]
    tiles = launch.choose_tiles(positions, out_channels, x_BIHW)
    grid = (launch.cdiv(positions, tiles.m), launch.cdiv(out_channels, tiles.n))
    launch.launchable(_join_conv_fwd_kernel)[grid](
        launch.channels_last(x_BIHW), launch.channels_last(skip),
        launch.channels_last(weight), bias_O.contiguous(),
        launch.channels_last(out_BOHW if residual_BOHW is None else residual_BOHW), out_BOHW,
        positions, height, width, low_height, low_width,
        channels, 0 if skip_BKhw is None else skip.shape[1], out_channels,
        low_height / height, low_width / width,
        RESIZED=(low_height, low_width) != (height, width),
        RESIDUAL=residual_BOHW is not None,
        RELU=relu,
        **launch.products(x_BIHW, "convolution"),
        **tiles.arguments(),
    )  # fmt: skip
    return out_BOHW


join_conv_triton.register_fake(lambda x, _skip, _weight, bias, *_: _empty(x, bias))


def _join_conv_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, skip_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr,
    positions, height, width, low_height, low_width,
    channels, skip_channels, out_channels,
    row_scale, column_scale,
    RESIZED: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wide, inside = channels + skip_channels, n < out_channels
    weight = weight_ptr + n.to(tl.int64)[None, :] * 9 * wide
    out = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    out = add_taps(
        out, x_ptr, weight, inside, m, positions, height, width, channels, wide,
        DOT_DTYPE, PRECISION, BLOCK_K,
    )  # fmt: skip
    if RESIZED:
        out = add_resized_taps(
            out, skip_ptr, weight + channels, inside, m, positions, height, width, skip_channels,
            wide, low_height, low_width, row_scale, column_scale, DOT_DTYPE, PRECISION, BLOCK_K,
        )  # fmt: skip
    else:
        out = add_taps(
            out, skip_ptr, weight + channels, inside, m, positions, height, width, skip_channels,
            wide, DOT_DTYPE, PRECISION, BLOCK_K,
        )  # fmt: skip
    out += tl.load(bias_ptr + n, mask=inside, other=0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * out_channels + n[None, :]
    mask = (m < positions)[:, None] & inside[None, :]
    if RESIDUAL:
        out += tl.load(residual_ptr + at, mask=mask, other=0).to(tl.float32)
    if RELU:
        out = relu(out)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@launch.device_function
def add_taps(  # type: ignore[no-untyped-def]
    out, x_ptr, weight, inside, m, positions, height, width, channels, wide,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds the share of one map of ``channels``; ``weight`` (1, N) points at its columns."""
    y, x, steps = m // width % height, m % width, tl.cdiv(channels, BLOCK_K)
    for step in range(9 * steps):
        tap, k = step // steps, step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        source, mask = tap_of(tap, m, y, x, positions, height, width)
        mask = mask[:, None] & (k < channels)[None, :]
        tile = tl.load(x_ptr + source[:, None] * channels + k[None, :], mask=mask, other=0)
        mask = (k < channels)[:, None] & inside[None, :]
        taps = tl.load(weight + (tap * wide + k)[:, None], mask=mask, other=0)
        out = dot_add(tile, taps, out, DOT_DTYPE, PRECISION)
    return out


@launch.device_function
def add_resized_taps(  # type: ignore[no-untyped-def]
    out, x_ptr, weight, inside, m, positions, height, width, channels, wide,
    low_height, low_width, row_scale, column_scale,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As ``add_taps``, of a smaller map that is resized where it is read."""
    y, x, steps = m // width % height, m % width, tl.cdiv(channels, BLOCK_K)
    view = (m // (height * width)).to(tl.int64)[:, None]
    view_ptr = x_ptr + view * low_height * low_width * channels
    for step in range(9 * steps):
        tap, k = step // steps, step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        _, mask = tap_of(tap, m, y, x, positions, height, width)
        mask = mask[:, None] & (k < channels)[None, :]
        rows, columns = y + tap // 3 - 1, x + tap % 3 - 1
        tile = sample(
            view_ptr, rows, columns, k[None, :], mask, row_scale, column_scale,
            low_height, low_width, channels,
        )  # fmt: skip
        mask = (k < channels)[:, None] & inside[None, :]
        taps = tl.load(weight + (tap * wide + k)[:, None], mask=mask, other=0)
        out = dot_add(tile, taps, out, DOT_DTYPE, PRECISION)
    return out


@launch.device_function
def tap_of(tap, m, y, x, positions, height, width):  # type: ignore[no-untyped-def]
    """Where tap 0..8 of a 3x3 kernel reads: flat positions, and whether they are in the map."""
    down, right = tap // 3 - 1, tap % 3 - 1
    inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
    return (m + down * width + right).to(tl.int64), inside & (m < positions)

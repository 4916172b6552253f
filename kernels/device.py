"""What several kernels share: device code, and launches that read several of the tower's levels.

Axes: M N output positions and channels of a tile, K what is summed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clipdepth_plugin.kernels import launch

if TYPE_CHECKING:
    import triton.language as tl

MOST_LEVELS = 8
"""One launch takes a pointer for each level."""

BLOCK_T = 32
"""Tokens of a tile."""

DEPTH_ACTIVATIONS = {"relu": 0, "softplus": 1, "log": 2, "bins": 3}
"""Output activations by the number that ``to_depth`` knows them by."""


@launch.device_function
def dot_add(x, weight, total, DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total`` + x @ weight, multiplied as ``products`` says."""
    x, weight = x.to(DOT_DTYPE), weight.to(DOT_DTYPE)
    if PRECISION == "tf32":
        x, weight = rounded_to_tf32(x), rounded_to_tf32(weight)
    return tl.dot(x, weight, total, input_precision=PRECISION)


@launch.device_function
def relu(x):  # type: ignore[no-untyped-def]
    """0 for what is negative; NaN stays, which ``tl.maximum`` drops."""
    return tl.where(x < 0.0, 0.0, x)


@launch.device_function
def rounded_to_tf32(x):  # type: ignore[no-untyped-def]
    """The nearest float32 with ten bits of mantissa: tensor cores truncate the others."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # noqa: PLR0124 (NaN stays)


@launch.device_function
def sample_axis(at, scale, low):  # type: ignore[no-untyped-def]
    """Where bilinear resize (``align_corners=False``) reads: two positions, the second's share."""
    source = tl.maximum((at.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), low - 1)
    return first, tl.minimum(first + 1, low - 1), source - first.to(tl.float32)


@launch.device_function
def sample(map_ptr, rows, columns, channel, mask, row_scale, column_scale, height, width, channels):  # type: ignore[no-untyped-def]
    """(M, N) of one (height, width, channels) map for each row, sampled bilinearly in float32.

    ``map_ptr`` (M, 1) points at each position's map, ``channel`` is (1, N).
    """
    top, bottom, down = sample_axis(rows, row_scale, height)
    left, right, across = sample_axis(columns, column_scale, width)
    at = map_ptr + channel
    top_left = tl.load(at + (top * width + left)[:, None] * channels, mask=mask, other=0)
    top_right = tl.load(at + (top * width + right)[:, None] * channels, mask=mask, other=0)
    low_left = tl.load(at + (bottom * width + left)[:, None] * channels, mask=mask, other=0)
    low_right = tl.load(at + (bottom * width + right)[:, None] * channels, mask=mask, other=0)
    across, down = across[:, None], down[:, None]
    upper = top_left.to(tl.float32) * (1 - across) + top_right.to(tl.float32) * across
    lower = low_left.to(tl.float32) * (1 - across) + low_right.to(tl.float32) * across
    return upper * (1 - down) + lower * down


@launch.device_function
def to_depth(level, low, high, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``readout.DepthActivation``: ``low`` and ``high`` are logarithms of the range's ends."""
    if ACTIVATION == 0:
        return relu(level)
    elif ACTIVATION == 1:
        return relu(level) + tl.log(1 + tl.exp(-tl.abs(level)))
    else:
        share = level
        if ACTIVATION == 2:
            share = tl.sigmoid(level)
        return tl.exp(low + (high - low) * share)


@launch.device_function
def row_moments(rows_ptr, mask, width, inverse_width, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean and reciprocal deviation of rows, as ``nn.LayerNorm`` takes them; in two passes."""
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = mask[:, None] & (k < width)[None, :]
        total += tl.sum(tl.load(rows_ptr + k[None, :], mask=inside, other=0).to(tl.float32), 1)
    mean = total * inverse_width
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = mask[:, None] & (k < width)[None, :]
        x = tl.load(rows_ptr + k[None, :], mask=inside, other=0).to(tl.float32)
        centred = tl.where(inside, x - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(squares * inverse_width + 1e-5)


def too_many(levels: Sequence[Tensor]) -> str | None:
    """Why a kernel cannot take so many levels; None: it can."""
    count = len(levels)
    return f"it takes {MOST_LEVELS} levels, got {count}" if count > MOST_LEVELS else None


def with_one_stride(levels: list[Tensor]) -> list[Tensor]:
    """Levels as the kernels read them: rows contiguous, all with the same stride between views."""
    width = levels[0].shape[-1]
    strides = {x.stride() for x in levels}
    if len(strides) == 1 and levels[0].stride()[1:] == (width, 1):
        return levels
    return [x.contiguous() for x in levels]


def padded(levels: list[Tensor]) -> list[Tensor]:
    """Eight pointers: the levels, then the first of them again."""
    return levels + levels[:1] * (MOST_LEVELS - len(levels))


@launch.device_function
def pick_pointer(level, x0, x1, x2, x3, x4, x5, x6, x7):  # type: ignore[no-untyped-def]
    """The ``level``-th of eight."""
    x = x0
    x = tl.where(level == 1, x1, x)
    x = tl.where(level == 2, x2, x)
    x = tl.where(level == 3, x3, x)
    x = tl.where(level == 4, x4, x)
    x = tl.where(level == 5, x5, x)
    x = tl.where(level == 6, x6, x)
    return tl.where(level == 7, x7, x)

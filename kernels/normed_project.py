"""Layer norm, projection and narrow FiLM of several levels, summed, in one pass.

sum_l (1 + gamma_l) * (W_l norm(x_l) + b_l) + beta_l: tokens are normalised in registers on their
way into the contraction, and the sum over the levels never leaves them.

Axes: L levels, B views, N patch tokens, D tower width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import (
    BLOCK_T,
    dot_add,
    padded,
    pick_pointer,
    row_moments,
    too_many,
    with_one_stride,
)
from clipdepth_plugin.kernels.dispatch import Shapes, check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl

NORM_EPS = 1e-5
"""Of ``nn.LayerNorm``, as ``compact.NormedLevels`` makes it."""


def normed_project(
    levels: Sequence[Tensor],
    film_LBP: Tensor | None,
    weight_LCD: Tensor,
    bias_LC: Tensor,
    *,
    triton: bool | None = None,
) -> Tensor:
    """Projects normalised levels and sums them.

    Args:
        levels: (B, N, D) each, the last two axes contiguous; slices of all tokens as they are.
        film_LBP: (L, B, 2 * C) gamma and beta of each level, float32; None: no modulation.
        weight_LCD: (L, C, D), the norms' scales folded in.
        bias_LC: (L, C), the norms' shifts folded in.
        triton: See ``ops``.

    Returns:
        (B, N, C) in the levels' dtype.
    """
    views, tokens, width = levels[0].shape
    channels = bias_LC.shape[1]
    expected: Shapes = {f"level {i}": (x, (views, tokens, width)) for i, x in enumerate(levels)}
    expected |= {
        "weight": (weight_LCD, (len(levels), channels, width)),
        "bias": (bias_LC, (len(levels), channels)),
    }
    if film_LBP is not None:
        expected["film"] = (film_LBP, (len(levels), views, 2 * channels))
    check_shapes("normed_project", expected)
    obstacle = too_many(levels) or forward_only((*levels, film_LBP, weight_LCD, bias_LC))
    if use_triton("normed_project", weight_LCD.device, triton, obstacle=obstacle):
        return normed_project_triton(list(levels), film_LBP, weight_LCD, bias_LC)
    # All that does not depend on a token comes first: a level adds one product to it.
    offset = bias_LC.sum(0)
    scales: Sequence[Tensor | None] = [None] * len(levels)
    if film_LBP is not None:
        gamma_LB1C, beta_LB1C = film_LBP[:, :, None].chunk(2, dim=-1)
        scale_LB1C = 1 + gamma_LB1C
        offset = (scale_LB1C * bias_LC[:, None, None] + beta_LB1C).sum(0)
        scales = scale_LB1C.unbind(0)
    total_BNC = offset
    for x_BND, weight_CD, scale_B1C in zip(levels, weight_LCD, scales, strict=True):
        y_BNC = F.linear(F.layer_norm(x_BND, x_BND.shape[-1:], eps=NORM_EPS), weight_CD)
        if scale_B1C is None:
            total_BNC = total_BNC + y_BNC
        else:
            total_BNC = torch.addcmul(total_BNC, y_BNC, scale_B1C)
    return total_BNC.to(levels[0].dtype)


def _empty(levels: list[Tensor], bias_LC: Tensor) -> Tensor:
    return levels[0].new_empty(*levels[0].shape[:2], bias_LC.shape[1])


@launch.kernel_op("normed_project")
def normed_project_triton(
    levels: list[Tensor], film_LBP: Tensor | None, weight_LCD: Tensor, bias_LC: Tensor
) -> Tensor:
    """The kernel's launch."""
    out_BNC = _empty(levels, bias_LC)
    if out_BNC.numel() == 0:
        return out_BNC
    levels = with_one_stride(levels)
    views, tokens, width = levels[0].shape
    channels = bias_LC.shape[1]
    block_n = 32
    grid = (launch.cdiv(tokens, BLOCK_T), launch.cdiv(channels, block_n), views)
    launch.launchable(_normed_project_fwd_kernel)[grid](
        *padded(levels),
        weight_LCD if film_LBP is None else film_LBP.contiguous(),
        weight_LCD.contiguous(), bias_LC.contiguous(), out_BNC,
        levels[0].stride(0), len(levels), views, tokens, width, channels, 1.0 / width,
        MODULATED=film_LBP is not None,
        **launch.products(weight_LCD, "matmul"),
        BLOCK_T=BLOCK_T,
        BLOCK_N=block_n,
        BLOCK_K=32 if weight_LCD.dtype == torch.float32 else 64,
        # Rounding to TF32 takes registers.
        num_warps=8 if launch.in_tf32(weight_LCD, "matmul") else 4,
        num_stages=3,
    )  # fmt: skip
    return out_BNC


normed_project_triton.register_fake(lambda levels, *rest: _empty(levels, rest[-1]))


def _normed_project_fwd_kernel(  # type: ignore[no-untyped-def]
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr,
    film_ptr, weight_ptr, bias_ptr, out_ptr,
    view_stride, levels, views, tokens, width, channels, inverse_width,
    MODULATED: tl.constexpr, DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for level in range(levels):
        x_ptr = pick_pointer(level, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr)
        x_rows = x_ptr + view * view_stride + t[:, None] * width
        mean, rstd = row_moments(x_rows, t < tokens, width, inverse_width, BLOCK_T, BLOCK_K)
        weight_rows = weight_ptr + (level * channels + n)[None, :].to(tl.int64) * width
        y = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
        for start in range(0, width, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask = (t < tokens)[:, None] & (k < width)[None, :]
            x = tl.load(x_rows + k[None, :], mask=mask, other=0).to(tl.float32)
            x = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
            mask = (n < channels)[None, :] & (k < width)[:, None]
            weight = tl.load(weight_rows + k[:, None], mask=mask, other=0)
            y = dot_add(x, weight, y, DOT_DTYPE, PRECISION)
        bias = tl.load(bias_ptr + level * channels + n, mask=n < channels, other=0)
        y += bias.to(tl.float32)[None, :]
        if MODULATED:
            film_row = film_ptr + (level * views + view) * 2 * channels
            gamma = tl.load(film_row + n, mask=n < channels, other=0).to(tl.float32)
            beta = tl.load(film_row + channels + n, mask=n < channels, other=0).to(tl.float32)
            y = y * (1 + gamma[None, :]) + beta[None, :]
        out += y
    at = (view * tokens + t)[:, None] * channels + n[None, :]
    mask = (t < tokens)[:, None] & (n < channels)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)

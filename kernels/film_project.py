"""FiLM and the 1x1 projection after it, for the levels of both pathways at once.

W (gamma * x + beta) + b: the tokens are modulated in registers on their way into the contraction,
so that modulated tokens are never written. (Pulling beta out as W beta + b, which is exact, too,
would save one multiply-add an element and cost a launch of its own.) Prefix tokens are skipped by
the stride between views: a level may be a slice of all tokens, and is not copied.

Axes: B views, N patch tokens, D tower width, M modulated levels, C channels of one level, S those
of all levels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import (
    BLOCK_T,
    MOST_LEVELS,
    dot_add,
    padded,
    pick_pointer,
    too_many,
    with_one_stride,
)
from clipdepth_plugin.kernels.dispatch import Shapes, check_shapes, no_float64, use_triton

if TYPE_CHECKING:
    import triton.language as tl


def film_project(
    levels: Sequence[Tensor],
    film_MBP: Tensor | None,
    weight_SD: Tensor,
    bias_S: Tensor,
    channels: Sequence[int],
    *,
    triton: bool | None = None,
) -> list[Tensor]:
    """Projects levels to their stages' channels, the first of them modulated.

    Args:
        levels: (B, N, D) each, the last two axes contiguous; slices of all tokens as they are.
        film_MBP: (M, B, 2 * D) gamma and beta of the first M levels, float32; None: no level.
        weight_SD: (S, D): the projections, level after level.
        bias_S: (S,).
        channels: C of each level; their sum is S.
        triton: See ``ops``.

    Returns:
        (B, N, C) for each level, in the levels' dtype. Sums are in float32.
    """
    views, tokens, width = levels[0].shape
    modulated = 0 if film_MBP is None else film_MBP.shape[0]
    total = sum(channels)
    expected: Shapes = {f"level {i}": (x, (views, tokens, width)) for i, x in enumerate(levels)}
    expected |= {"weight": (weight_SD, (total, width)), "bias": (bias_S, (total,))}
    if film_MBP is not None:
        expected["film"] = (film_MBP, (min(modulated, len(levels)), views, 2 * width))
    check_shapes("film_project", expected)
    if len(channels) != len(levels):
        raise KernelError(f"film_project: {len(channels)} channels for {len(levels)} levels")
    obstacle = too_many(levels) or no_float64((*levels, film_MBP, weight_SD, bias_S))
    if use_triton("film_project", weight_SD.device, triton, obstacle=obstacle):
        flat = film_project_triton(list(levels), film_MBP, weight_SD, bias_S, list(channels))
        parts = flat.split([views * tokens * c for c in channels])
        return [x.view(views, tokens, c) for x, c in zip(parts, channels, strict=True)]
    out = []
    weights, biases = weight_SD.split(list(channels)), bias_S.split(list(channels))
    for i, (x_BND, weight_CD, bias_C) in enumerate(zip(levels, weights, biases, strict=True)):
        modulated_BND = x_BND
        if film_MBP is not None and i < len(film_MBP):
            gamma_B1D, beta_B1D = film_MBP[i, :, None].chunk(2, dim=-1)
            modulated_BND = (gamma_B1D * x_BND + beta_B1D).to(x_BND.dtype)
        out.append(F.linear(modulated_BND, weight_CD, bias_C))
    return out


def _empty(levels: list[Tensor], channels: list[int]) -> Tensor:
    views, tokens, _ = levels[0].shape
    return levels[0].new_empty(views * tokens * sum(channels))


@launch.kernel_op("film_project")
def film_project_triton(
    levels: list[Tensor],
    film_MBP: Tensor | None,
    weight_SD: Tensor,
    bias_S: Tensor,
    channels: list[int],
) -> Tensor:
    """The kernel's launch; the levels' outputs one after the other in one tensor."""
    views, tokens, width = levels[0].shape
    out = _empty(levels, channels)
    if out.numel() == 0:
        return out
    levels = with_one_stride(levels)
    block_n = 32
    grid = (launch.cdiv(tokens, BLOCK_T), sum(launch.cdiv(c, block_n) for c in channels), views)
    launch.launchable(_film_project_fwd_kernel)[grid](
        *padded(levels),
        weight_SD if film_MBP is None else film_MBP.contiguous(),
        weight_SD.contiguous(), bias_S.contiguous(), out,
        *(channels + [0] * (MOST_LEVELS - len(channels))),
        levels[0].stride(0), views, tokens, width, 0 if film_MBP is None else film_MBP.shape[0],
        **launch.products(weight_SD, "convolution"),
        BLOCK_T=BLOCK_T,
        BLOCK_N=block_n,
        BLOCK_K=32 if weight_SD.dtype == torch.float32 else 64,
        num_warps=4,
        num_stages=3,
    )  # fmt: skip
    return out


film_project_triton.register_fake(lambda levels, *rest: _empty(levels, rest[-1]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch's signature)
    levels, film_MBP, weight_SD, _, ctx.channels = inputs
    ctx.save_for_backward(film_MBP, weight_SD, *levels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Y = W (gamma x + beta) + b for each level; recomputes the modulated tokens."""
    film_MBP, weight_SD, *levels = ctx.saved_tensors
    views, tokens, _ = levels[0].shape
    parts = grad.split([views * tokens * c for c in ctx.channels])
    grad_levels, grad_film, grad_weight, grad_bias = [], [], [], []
    for i, (x_BND, weight_CD) in enumerate(zip(levels, weight_SD.split(ctx.channels), strict=True)):
        grad_BNC = parts[i].view(views, tokens, -1)
        grad_modulated_BND = grad_BNC @ weight_CD
        modulated_BND, grad_x_BND = x_BND, grad_modulated_BND
        if film_MBP is not None and i < len(film_MBP):
            gamma_B1D, beta_B1D = film_MBP[i, :, None].chunk(2, dim=-1)
            modulated_BND = (gamma_B1D * x_BND + beta_B1D).to(x_BND.dtype)
            grad_x_BND = (gamma_B1D * grad_modulated_BND).to(x_BND.dtype)
            products = (grad_modulated_BND * x_BND, grad_modulated_BND)
            grad_film.append(torch.cat([g.sum(1, dtype=film_MBP.dtype) for g in products], -1))
        grad_levels.append(grad_x_BND)
        grad_weight.append(grad_BNC.flatten(0, 1).T @ modulated_BND.flatten(0, 1))
        grad_bias.append(grad_BNC.sum((0, 1)))
    return (
        grad_levels,
        torch.stack(grad_film) if grad_film else None,
        torch.cat(grad_weight),
        torch.cat(grad_bias),
        None,
    )


film_project_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _film_project_fwd_kernel(  # type: ignore[no-untyped-def]
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr,
    film_ptr, weight_ptr, bias_ptr, out_ptr,
    c0, c1, c2, c3, c4, c5, c6, c7,
    view_stride, views, tokens, width, modulated,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(2).to(tl.int64)
    level, row, channels, block = pick_block(
        tl.program_id(1), c0, c1, c2, c3, c4, c5, c6, c7, BLOCK_N
    )
    x_ptr = pick_pointer(level, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = x_ptr + view * view_stride + t[:, None] * width
    film_row = film_ptr + (level * views + view) * 2 * width
    out = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask = (t < tokens)[:, None] & (k < width)[None, :]
        x = tl.load(x_rows + k[None, :], mask=mask, other=0)
        with_film = (k < width) & (level < modulated)
        gamma = tl.load(film_row + k, mask=with_film, other=0).to(tl.float32)
        gamma = tl.where(with_film, gamma, 1.0)
        beta = tl.load(film_row + width + k, mask=with_film, other=0).to(tl.float32)
        x = x.to(tl.float32) * gamma[None, :] + beta[None, :]
        mask = (n < channels)[None, :] & (k < width)[:, None]
        weight_at = (row + n)[None, :].to(tl.int64) * width + k[:, None]
        weight = tl.load(weight_ptr + weight_at, mask=mask, other=0)
        out = dot_add(x, weight, out, DOT_DTYPE, PRECISION)
    bias = tl.load(bias_ptr + row + n, mask=n < channels, other=0)
    out += bias.to(tl.float32)[None, :]
    before = row.to(tl.int64) * views * tokens
    at = before + (view * tokens + t)[:, None] * channels + n[None, :]
    mask = (t < tokens)[:, None] & (n < channels)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@launch.device_function
def pick_block(block, c0, c1, c2, c3, c4, c5, c6, c7, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which level a block of columns is of: the level, its first row, its channels, the block."""
    level, row, channels = 0, 0, c0
    level, row, channels, block = next_level(0, level, row, channels, block, c1, BLOCK_N)
    level, row, channels, block = next_level(1, level, row, channels, block, c2, BLOCK_N)
    level, row, channels, block = next_level(2, level, row, channels, block, c3, BLOCK_N)
    level, row, channels, block = next_level(3, level, row, channels, block, c4, BLOCK_N)
    level, row, channels, block = next_level(4, level, row, channels, block, c5, BLOCK_N)
    level, row, channels, block = next_level(5, level, row, channels, block, c6, BLOCK_N)
    level, row, channels, block = next_level(6, level, row, channels, block, c7, BLOCK_N)
    return level, row, channels, block


@launch.device_function
def next_level(at, level, row, channels, block, following, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Goes on to the next level where this one's blocks end before."""
    blocks = tl.cdiv(channels, BLOCK_N)
    on = (level == at) & (block >= blocks)
    return (
        tl.where(on, at + 1, level),
        tl.where(on, row + channels, row),
        tl.where(on, following, channels),
        tl.where(on, block - blocks, block),
    )

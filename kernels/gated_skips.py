"""Gated skips: s * (1 + sigmoid(G u + g)), the semantic one sampled from the patch grid.

The gates' 1x1 convolution, the sigmoid, the bilinear sampling and the product in one pass; neither
gates nor the resized skip are written. ``join_conv`` takes the result as a column block beside the
map itself, so that the concatenation is not written either.

The gated skips themselves are written: the 3x3 convolution reads each of them nine times, and gates
computed anew at every tap would be a fifth of the published head's operations.

Axes: B views, C channels, G = C or 2 C those of the gates, H W the map's size, h w the patch grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import dot_add, sample
from clipdepth_plugin.kernels.dispatch import check_shapes, no_float64, use_triton

if TYPE_CHECKING:
    import triton.language as tl


def gated_skips(
    u_BCHW: Tensor,
    semantic_BChw: Tensor,
    structural_BCHW: Tensor | None,
    weight_GC: Tensor,
    bias_G: Tensor,
    *,
    triton: bool | None = None,
) -> Tensor:
    """Skips, each gated by the decoder's map.

    Args:
        u_BCHW: (B, C, H, W), channels last.
        semantic_BChw: (B, C, h, w), channels last.
        structural_BCHW: (B, C, H, W), channels last, or None.
        weight_GC: (G, C): the semantic gate's rows, then the structural one's.
        bias_G: (G,).
        triton: See ``ops``.

    Returns:
        (B, G, H, W), channels last: the semantic skip, then the structural one.
    """
    batch, channels, height, width = u_BCHW.shape
    gates = channels * (1 if structural_BCHW is None else 2)
    expected = {
        "weight": (weight_GC, (gates, channels)),
        "bias": (bias_G, (gates,)),
        "semantic": (semantic_BChw, (batch, channels, *semantic_BChw.shape[2:])),
    }
    if structural_BCHW is not None:
        expected["structural"] = (structural_BCHW, (batch, channels, height, width))
    check_shapes("gated_skips", expected)
    tensors = (u_BCHW, semantic_BChw, structural_BCHW, weight_GC, bias_G)
    if use_triton("gated_skips", u_BCHW.device, triton, obstacle=no_float64(tensors)):
        return gated_skips_triton(*tensors)
    gate_BGHW = torch.sigmoid(F.conv2d(u_BCHW, weight_GC[:, :, None, None], bias_G))
    skips = skips_like(u_BCHW, semantic_BChw, structural_BCHW)
    chunks = gate_BGHW.chunk(len(skips), dim=1)
    return torch.cat([torch.addcmul(s, s, g) for s, g in zip(skips, chunks, strict=True)], dim=1)


def skips_like(
    u_BCHW: Tensor, semantic_BChw: Tensor, structural_BCHW: Tensor | None
) -> list[Tensor]:
    """The skips at a map's size: the semantic one, then the structural one where there is one."""
    height, width = u_BCHW.shape[-2:]
    skips = [resize(semantic_BChw, (height, width))]
    return skips if structural_BCHW is None else [*skips, structural_BCHW]


def _empty(u_BCHW: Tensor, bias_G: Tensor) -> Tensor:
    batch, _, height, width = u_BCHW.shape
    return launch.empty_map(u_BCHW, (batch, bias_G.shape[0], height, width))


@launch.kernel_op("gated_skips")
def gated_skips_triton(
    u_BCHW: Tensor,
    semantic_BChw: Tensor,
    structural_BCHW: Tensor | None,
    weight_GC: Tensor,
    bias_G: Tensor,
) -> Tensor:
    """The kernel's launch."""
    out_BGHW = _empty(u_BCHW, bias_G)
    if out_BGHW.numel() == 0:
        return out_BGHW
    batch, channels, height, width = u_BCHW.shape
    low_height, low_width = semantic_BChw.shape[-2:]
    positions, gates = batch * height * width, bias_G.shape[0] // channels
    tiles = launch.choose_tiles(positions, channels, u_BCHW, copies=gates)
    grid = (launch.cdiv(positions, tiles.m), launch.cdiv(channels, tiles.n), gates)
    launch.launchable(_gated_skips_fwd_kernel)[grid](
        launch.channels_last(u_BCHW), launch.channels_last(semantic_BChw),
        launch.channels_last(u_BCHW if structural_BCHW is None else structural_BCHW),
        weight_GC.contiguous(), bias_G.contiguous(), out_BGHW,
        positions, height, width, low_height, low_width, channels, gates,
        low_height / height, low_width / width,
        **launch.products(u_BCHW, "convolution"),
        **tiles.arguments(),
    )  # fmt: skip
    return out_BGHW


gated_skips_triton.register_fake(lambda u, _low, _skip, _weight, bias: _empty(u, bias))


def _save_for_backward(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:  # noqa: ARG001 (torch's signature)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_BGHW: Tensor) -> tuple[Tensor | None, ...]:
    """S (1 + sigmoid(z)): ds = (1 + sigmoid(z)) dy, dz = s sigmoid'(z) dy; recomputes z and s."""
    u_BCHW, semantic_BChw, structural_BCHW, weight_GC, bias_G = ctx.saved_tensors
    size = u_BCHW.shape[-2:]
    u_BHWC, grad_BHWG = u_BCHW.permute(0, 2, 3, 1), grad_BGHW.permute(0, 2, 3, 1)
    gate_BHWG = torch.sigmoid(F.linear(u_BHWC, weight_GC, bias_G))
    skips = skips_like(u_BCHW, semantic_BChw, structural_BCHW)
    skip_BHWG = torch.cat(skips, dim=1).permute(0, 2, 3, 1)
    grad_skip_BGHW = ((1 + gate_BHWG) * grad_BHWG).permute(0, 3, 1, 2)
    grad_z_BHWG = skip_BHWG * gate_BHWG * (1 - gate_BHWG) * grad_BHWG
    grad_skips = grad_skip_BGHW.chunk(len(skips), dim=1)
    grad_semantic_BChw = grad_skips[0]
    if semantic_BChw.shape[-2:] != size:
        grad_semantic_BChw = torch.ops.aten.upsample_bilinear2d_backward(
            grad_skips[0].contiguous(), size, semantic_BChw.shape, False
        )
    return (
        (grad_z_BHWG @ weight_GC).permute(0, 3, 1, 2),
        grad_semantic_BChw,
        None if structural_BCHW is None else grad_skips[1],
        grad_z_BHWG.flatten(0, 2).T @ u_BHWC.flatten(0, 2),
        grad_z_BHWG.sum((0, 1, 2)),
    )


gated_skips_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _gated_skips_fwd_kernel(  # type: ignore[no-untyped-def]
    u_ptr, semantic_ptr, structural_ptr, weight_ptr, bias_ptr, out_ptr,
    positions, height, width, low_height, low_width, channels, gates,
    row_scale, column_scale,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    which = tl.program_id(2)
    rows = m.to(tl.int64)[:, None] * channels
    weight_rows = weight_ptr + (which * channels + n)[None, :] * channels
    z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, channels, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask = (m < positions)[:, None] & (k < channels)[None, :]
        u = tl.load(u_ptr + rows + k[None, :], mask=mask, other=0)
        mask = (k < channels)[:, None] & (n < channels)[None, :]
        weight = tl.load(weight_rows + k[:, None], mask=mask, other=0)
        z = dot_add(u, weight, z, DOT_DTYPE, PRECISION)
    bias = tl.load(bias_ptr + which * channels + n, mask=n < channels, other=0)
    z += bias.to(tl.float32)[None, :]
    mask = (m < positions)[:, None] & (n < channels)[None, :]
    if which == 0:
        view = (m // (height * width)).to(tl.int64)[:, None]
        skip = sample(
            semantic_ptr + view * low_height * low_width * channels,
            m // width % height, m % width, n[None, :], mask,
            row_scale, column_scale, low_height, low_width, channels,
        )  # fmt: skip
    else:
        skip = tl.load(structural_ptr + rows + n[None, :], mask=mask, other=0).to(tl.float32)
    out = skip * (1 + tl.sigmoid(z))
    at = (rows * gates + which * channels) + n[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)

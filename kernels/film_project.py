"""FiLM and the 1x1 projection after it in one pass: W (gamma * x + beta) + b.

W (gamma * x + beta) + b = sum_k W[:, k] gamma[k] x[k] + (W beta + b): gamma multiplies the token
tile in registers and the rest is one vector a view, so modulated tokens are never written.
Prefix tokens are skipped by the row offset of the pointer.

Axes: B views, T all tokens, N patch tokens (T without the prefix), D tower width, C channels.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipdepth_plugin.errors import KernelError
from clipdepth_plugin.kernels.dispatch import use_triton

if TYPE_CHECKING:
    import triton.language as tl


def film_project(
    x_BTD: Tensor,
    gamma_BD: Tensor,
    beta_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    *,
    prefix: int = 0,
    triton: bool | None = None,
) -> Tensor:
    """Modulates patch tokens and projects them to a stage's channels.

    Args:
        x_BTD: (B, T, D) tokens with their prefix, the last axis contiguous.
        gamma_BD: (B, D) factor of each view.
        beta_BD: (B, D) shift of each view.
        weight_CD: (C, D) projection.
        bias_C: (C,) its bias.
        prefix: Tokens to skip in front of each view's.
        triton: None chooses, False is the reference, True must work or fail.

    Returns:
        (B, T - prefix, C) in ``x_BTD``'s dtype, whatever the others' is. Sums are in float32
        (the reference's in float64 where an input is), and so are products, but that the kernel
        rounds the factors to the tokens' dtype where the weight has it too.

    Raises:
        KernelError: Shapes do not fit, or Triton was asked for and cannot run: also where a
            gradient is needed (the kernel has none) or an input is float64.
    """
    views, tokens, width = x_BTD.shape
    channels = weight_CD.shape[0]
    expected = {
        "gamma": (gamma_BD, (views, width)),
        "beta": (beta_BD, (views, width)),
        "weight": (weight_CD, (channels, width)),
        "bias": (bias_C, (channels,)),
    }
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise KernelError(f"film_project: {name} is {tuple(value.shape)}, expected {shape}")
    if not 0 <= prefix <= tokens:
        raise KernelError(f"film_project: prefix {prefix} of {tokens} tokens")
    inputs = (x_BTD, gamma_BD, beta_BD, weight_CD, bias_C)
    fused = use_triton("film_project", x_BTD.device, triton, obstacle=_obstacle(inputs))
    run = _launch if fused else film_project_reference
    return run(x_BTD, gamma_BD, beta_BD, weight_CD, bias_C, prefix=prefix)


def _obstacle(inputs: tuple[Tensor, ...]) -> str | None:
    """Why the kernel cannot take these inputs."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return "a gradient is needed, and the kernel gives none"
    if any(x.dtype == torch.float64 for x in inputs):
        return "an input is float64, and the kernel sums in float32"
    return None


def film_project_reference(
    x_BTD: Tensor,
    gamma_BD: Tensor,
    beta_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    *,
    prefix: int,
) -> Tensor:
    """What the kernel must give, in plain PyTorch, as ``SemanticPathway`` does it in float32."""
    dtype = torch.float32
    for x in (x_BTD, gamma_BD, beta_BD, weight_CD, bias_C):
        dtype = torch.promote_types(dtype, x.dtype)
    modulated_BND = gamma_BD.to(dtype)[:, None] * x_BTD[:, prefix:].to(dtype)
    modulated_BND = modulated_BND + beta_BD.to(dtype)[:, None]
    out_BNC = torch.nn.functional.linear(modulated_BND, weight_CD.to(dtype), bias_C.to(dtype))
    return out_BNC.to(x_BTD.dtype)


def _launch(
    x_BTD: Tensor,
    gamma_BD: Tensor,
    beta_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    *,
    prefix: int,
) -> Tensor:
    import triton as triton_

    views, tokens, width = x_BTD.shape
    patches, channels = tokens - prefix, weight_CD.shape[0]
    out_BNC = x_BTD.new_empty(views, patches, channels)
    if out_BNC.numel() == 0:
        return out_BNC
    x_BTD, weight_CD = x_BTD.contiguous(), weight_CD.contiguous()
    shift_BC = torch.nn.functional.linear(beta_BD.float(), weight_CD.float(), bias_C.float())
    product = x_BTD.dtype if weight_CD.dtype == x_BTD.dtype else torch.float32
    tiles = tile_sizes(channels, product)
    grid = (
        triton_.cdiv(patches, tiles["BLOCK_N"]),
        triton_.cdiv(channels, tiles["BLOCK_C"]),
        views,
    )
    film_project_fwd_kernel()[grid](
        x_BTD,
        gamma_BD.contiguous(),
        weight_CD,
        shift_BC,
        out_BNC,
        tokens,
        patches,
        width,
        channels,
        prefix,
        **tiles,
        DOT_DTYPE=dot_dtype(product),
    )
    return out_BNC


def tile_sizes(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """A rule, not a search: the first call is as fast as the next.

    float32 has no tensor cores here: larger tiles spill registers.
    """
    if dtype == torch.float32:
        return {"BLOCK_N": 32, "BLOCK_C": 32, "BLOCK_D": 32}
    return {"BLOCK_N": 32, "BLOCK_C": 64 if channels >= 64 else 32, "BLOCK_D": 32}


def dot_dtype(dtype: torch.dtype) -> Any:
    """What the contraction multiplies in: on a GPU, the dtype that tokens and weight share.

    Triton's interpreter multiplies bfloat16 as if it were integers, so there it is float32.
    """
    import triton.language

    if os.environ.get("TRITON_INTERPRET") == "1" or dtype == torch.float32:
        return triton.language.float32
    return triton.language.bfloat16 if dtype == torch.bfloat16 else triton.language.float16


@functools.cache
def film_project_fwd_kernel() -> Any:
    """The Triton kernel, made on first use: importing this file must not need triton."""
    import triton
    import triton.language

    # Triton reads tl from the kernel's globals, not from an enclosing function.
    globals()["tl"] = triton.language
    return triton.jit(_film_project_fwd_kernel)


def _film_project_fwd_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x_ptr,
    gamma_ptr,
    weight_ptr,
    shift_ptr,
    out_ptr,
    tokens,
    patches,
    width,
    channels,
    prefix,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    view = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_rows = x_ptr + (view * tokens + prefix + n[:, None]) * width
    weight_rows = weight_ptr + c[None, :] * width
    out = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(
            x_rows + d[None, :], mask=(n[:, None] < patches) & (d[None, :] < width), other=0
        )
        gamma = tl.load(gamma_ptr + view * width + d, mask=d < width, other=0)
        weight = tl.load(
            weight_rows + d[:, None], mask=(c[None, :] < channels) & (d[:, None] < width), other=0
        )
        scaled = x.to(tl.float32) * gamma[None, :].to(tl.float32)
        out += tl.dot(scaled.to(DOT_DTYPE), weight.to(DOT_DTYPE), input_precision="ieee")
    shift = tl.load(shift_ptr + view * channels + c, mask=c < channels, other=0)
    out += shift[None, :]
    out_rows = out_ptr + (view * patches + n[:, None]) * channels
    mask = (n[:, None] < patches) & (c[None, :] < channels)
    tl.store(out_rows + c[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)

"""FiLM's MLPs, all levels at once: Linear - act - Linear of the global context.

Axes: L levels, B views, D tower width, K hidden width, P the parameters of a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.kernels import launch
from clipdepth_plugin.kernels.device import dot_add, relu, row_moments
from clipdepth_plugin.kernels.dispatch import check_shapes, forward_only, use_triton

if TYPE_CHECKING:
    import triton.language as tl

FilmActivation = Literal["relu", "gelu"]

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}
"""By the number that the kernel knows them by."""

BLOCK_B = 16
"""Views of a tile: the fewest rows that a tensor core takes."""


def film_mlp(
    context_BD: Tensor,
    weight_LKD: Tensor,
    bias_LK: Tensor,
    last_weight_LPK: Tensor,
    last_bias_LP: Tensor,
    *,
    activation: FilmActivation,
    normed: bool = False,
    triton: bool | None = None,
) -> Tensor:
    """FiLM's parameters of every level.

    Args:
        context_BD: (B, D).
        weight_LKD: (L, K, D) first layers.
        bias_LK: (L, K).
        last_weight_LPK: (L, P, K) second layers.
        last_bias_LP: (L, P).
        activation: Between them.
        normed: Normalise the context over its width first (a layer norm whose scale and shift are
            folded into the first layer).
        triton: See ``ops``.

    Returns:
        (L, B, P) float32.
    """
    levels, hidden, parameters = *bias_LK.shape, last_bias_LP.shape[-1]
    expected = {
        "weight": (weight_LKD, (levels, hidden, context_BD.shape[1])),
        "last weight": (last_weight_LPK, (levels, parameters, hidden)),
        "last bias": (last_bias_LP, (levels, parameters)),
    }
    check_shapes("film_mlp", expected)
    tensors = (context_BD, weight_LKD, bias_LK, last_weight_LPK, last_bias_LP)
    if use_triton("film_mlp", context_BD.device, triton, obstacle=forward_only(tensors)):
        return film_mlp_triton(*tensors, activation, normed)
    if normed:
        context_BD = F.layer_norm(context_BD, context_BD.shape[-1:])
    act = F.relu if activation == "relu" else F.gelu
    layers = zip(weight_LKD, bias_LK, last_weight_LPK, last_bias_LP, strict=True)
    out_LBP = torch.stack(
        [
            F.linear(act(F.linear(context_BD, w, b)), last_w, last_b)
            for w, b, last_w, last_b in layers
        ]
    )
    return out_LBP if out_LBP.dtype == torch.float64 else out_LBP.float()


def _empty(context_BD: Tensor, last_bias_LP: Tensor) -> Tensor:
    levels, parameters = last_bias_LP.shape
    return context_BD.new_empty((levels, context_BD.shape[0], parameters), dtype=torch.float32)


@launch.kernel_op("film_mlp")
def film_mlp_triton(
    context_BD: Tensor,
    weight_LKD: Tensor,
    bias_LK: Tensor,
    last_weight_LPK: Tensor,
    last_bias_LP: Tensor,
    activation: str,
    normed: bool,
) -> Tensor:
    """The kernel's two launches, one for each layer of all levels."""
    out_LBP = _empty(context_BD, last_bias_LP)
    if out_LBP.numel() == 0:
        return out_LBP
    batch = context_BD.shape[0]
    levels, hidden = bias_LK.shape
    hidden_LBK = context_BD.new_empty(levels, batch, hidden)
    layers = (
        (context_BD, 0, weight_LKD, bias_LK, hidden_LBK, ACTIVATIONS[activation], normed),
        (hidden_LBK, batch * hidden, last_weight_LPK, last_bias_LP, out_LBP, 0, False),
    )
    for x, level_stride, weight, bias, out, act, norm in layers:
        block_n = 16 if batch <= BLOCK_B else 64
        grid = (launch.cdiv(weight.shape[1], block_n), levels, launch.cdiv(batch, BLOCK_B))
        launch.launchable(_linear_act_fwd_kernel)[grid](
            x.contiguous(), weight.contiguous(), bias.contiguous(), out,
            level_stride, batch, weight.shape[2], weight.shape[1], 1.0 / weight.shape[2],
            NORMED=norm,
            ACTIVATION=act,
            **launch.products(context_BD, "matmul"),
            BLOCK_B=BLOCK_B,
            BLOCK_N=block_n,
            BLOCK_K=64,
            num_warps=4,
            num_stages=3,
        )  # fmt: skip
    return out_LBP


film_mlp_triton.register_fake(lambda x, _w, _b, _last_w, bias, *_: _empty(x, bias))


def _linear_act_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    level_stride, batch, width, channels, inverse_width,
    NORMED: tl.constexpr, ACTIVATION: tl.constexpr,
    DOT_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    x_rows = x_ptr + level * level_stride + b[:, None] * width
    weight_rows = weight_ptr + (level * channels + n)[None, :] * width
    mean, rstd = tl.zeros((BLOCK_B,), tl.float32), tl.full((BLOCK_B,), 1.0, tl.float32)
    if NORMED:
        mean, rstd = row_moments(x_rows, b < batch, width, inverse_width, BLOCK_B, BLOCK_K)
    out = tl.zeros((BLOCK_B, BLOCK_N), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        mask = (b < batch)[:, None] & (k < width)[None, :]
        x = tl.load(x_rows + k[None, :], mask=mask, other=0).to(tl.float32)
        x = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        mask = (n < channels)[None, :] & (k < width)[:, None]
        weight = tl.load(weight_rows + k[:, None], mask=mask, other=0)
        out = dot_add(x, weight, out, DOT_DTYPE, PRECISION)
    bias = tl.load(bias_ptr + level * channels + n, mask=n < channels, other=0)
    out += bias.to(tl.float32)[None, :]
    if ACTIVATION == 1:
        out = relu(out)
    if ACTIVATION == 2:
        out = 0.5 * out * (1 + tl.erf(out * 0.7071067811865476))
    at = (level * batch + b)[:, None] * channels + n[None, :]
    mask = (b < batch)[:, None] & (n < channels)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)

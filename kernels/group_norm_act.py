"""Group norm, a residual and the activation in one pass.

Axes: B views, C channels, H W the map's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.kernels.dispatch import Shapes, check_shapes, forward_only, use_triton
from clipdepth_plugin.kernels.launch import (
    ACTIVATIONS,
    activated,
    channels_last,
    device_function,
    empty_map,
    kernel_op,
    launchable,
    power_of_two,
)

NormActivation = Literal["relu", "gelu", "none"]

MOST_IN_REGISTERS = 8192
"""Elements of a group that a program holds: 16 registers of each of 512 threads."""

IN_ONE_STEP = 4096
"""Elements of a larger group read at once; twice as many took longer on an H100."""

if TYPE_CHECKING:
    import triton.language as tl


def group_norm_act(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    *,
    groups: int,
    eps: float,
    activation: NormActivation,
    residual_BCHW: Tensor | None = None,
    triton: bool | None = None,
) -> Tensor:
    """act(group_norm(x) + residual).

    Args:
        x_BCHW: (B, C, H, W), channels last.
        weight_C: (C,).
        bias_C: (C,).
        groups: Of channels; divides C.
        eps: Added to the variance.
        activation: Applied last.
        residual_BCHW: Added before the activation, or None.
        triton: None chooses, False is the reference, True must work or fail.

    Returns:
        (B, C, H, W), channels last, in ``x_BCHW``'s dtype.

    Raises:
        KernelError: Shapes do not fit, or Triton was asked for and cannot run.
    """
    channels = (x_BCHW.shape[1],)
    expected: Shapes = {"weight": (weight_C, channels), "bias": (bias_C, channels)}
    if residual_BCHW is not None:
        expected["residual"] = (residual_BCHW, tuple(x_BCHW.shape))
    check_shapes("group_norm_act", expected)
    tensors = (x_BCHW, weight_C, bias_C, residual_BCHW)
    obstacle = forward_only(tensors)
    if use_triton("group_norm_act", x_BCHW.device, triton, obstacle=obstacle):
        return group_norm_act_triton(*tensors, groups, eps, activation)
    return group_norm_act_reference(*tensors, groups=groups, eps=eps, activation=activation)


def group_norm_act_reference(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    residual_BCHW: Tensor | None,
    *,
    groups: int,
    eps: float,
    activation: NormActivation,
) -> Tensor:
    """What the kernel must give."""
    y_BCHW = F.group_norm(x_BCHW, groups, weight_C, bias_C, eps)
    if residual_BCHW is not None:
        y_BCHW = y_BCHW + residual_BCHW
    match activation:
        case "relu":
            return F.relu_(y_BCHW)
        case "gelu":
            return F.gelu(y_BCHW)
        case "none":
            return y_BCHW


@kernel_op("group_norm_act")
def group_norm_act_triton(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    residual_BCHW: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
) -> Tensor:
    """The kernel's launch."""
    out_BCHW = empty_map(x_BCHW, tuple(x_BCHW.shape))
    if out_BCHW.numel() == 0:
        return out_BCHW
    batch, channels, height, width = x_BCHW.shape
    block_c = power_of_two(channels // groups, least=1)
    block_m = power_of_two(height * width, least=1)
    whole = block_m * block_c <= MOST_IN_REGISTERS
    if not whole:
        block_m = max(IN_ONE_STEP // block_c, 1)
    launchable(_group_norm_act_fwd_kernel)[(groups, batch)](
        channels_last(x_BCHW),
        weight_C.contiguous(),
        bias_C.contiguous(),
        channels_last(out_BCHW if residual_BCHW is None else residual_BCHW),
        out_BCHW,
        height * width,
        channels,
        channels // groups,
        1.0 / (height * width * (channels // groups)),
        eps,
        RESIDUAL=residual_BCHW is not None,
        ACTIVATION=ACTIVATIONS[activation],
        WHOLE=whole,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=min(max(block_m * block_c // 512, 4), 16) if whole else 16,
    )
    return out_BCHW


group_norm_act_triton.register_fake(lambda x, *_: empty_map(x, tuple(x.shape)))


def _group_norm_act_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    positions,
    channels,
    per_group,
    inverse_count,
    eps,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first = tl.program_id(1).to(tl.int64) * positions * channels + tl.program_id(0) * per_group
    c = tl.arange(0, BLOCK_C)
    channel = tl.program_id(0) * per_group + c
    weight = tl.load(weight_ptr + channel, mask=c < per_group, other=0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=c < per_group, other=0).to(tl.float32)
    if WHOLE:
        at, mask = places(0, first, positions, channels, per_group, BLOCK_M, BLOCK_C)
        x = tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
        centred = tl.where(mask, x - tl.sum(x) * inverse_count, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred) * inverse_count + eps)
        y = centred * (weight * rstd)[None, :] + bias[None, :]
        finish(y, residual_ptr, out_ptr, at, mask, RESIDUAL, ACTIVATION)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
        for start in range(0, positions, BLOCK_M):
            at, mask = places(start, first, positions, channels, per_group, BLOCK_M, BLOCK_C)
            total += tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
        mean = tl.sum(total) * inverse_count
        squares = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
        for start in range(0, positions, BLOCK_M):
            at, mask = places(start, first, positions, channels, per_group, BLOCK_M, BLOCK_C)
            x = tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
            squares += tl.where(mask, (x - mean) * (x - mean), 0.0)
        rstd = tl.rsqrt(tl.sum(squares) * inverse_count + eps)
        for start in range(0, positions, BLOCK_M):
            at, mask = places(start, first, positions, channels, per_group, BLOCK_M, BLOCK_C)
            x = tl.load(x_ptr + at, mask=mask, other=0).to(tl.float32)
            y = (x - mean) * (weight * rstd)[None, :] + bias[None, :]
            finish(y, residual_ptr, out_ptr, at, mask, RESIDUAL, ACTIVATION)


@device_function
def places(  # type: ignore[no-untyped-def]
    start, first, positions, channels, per_group, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Where a block's elements of the group are, and which of them there are."""
    m, c = start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C)
    mask = (m < positions)[:, None] & (c < per_group)[None, :]
    return first + m[:, None] * channels + c[None, :], mask


@device_function
def finish(y, residual_ptr, out_ptr, at, mask, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Residual, activation, and out."""
    if RESIDUAL:
        y += tl.load(residual_ptr + at, mask=mask, other=0).to(tl.float32)
    y = activated(y, ACTIVATION)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)

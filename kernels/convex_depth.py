"""Convex upsampling to metres in one pass: the mask's 1x1 convolution, softmax, mix, activation.

RAFT, arXiv 2003.12039, section 3.3, as ``compact.convex_upsample`` does it; the masks of 9 R^2
channels are never written.

Axes: B views, C channels, H W the coarse map's size, R the factor, K the 9 neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipdepth_plugin.compact import CONVEX_FACTOR, convex_upsample, convex_weights
from clipdepth_plugin.kernels.dispatch import check_shapes, forward_only, use_triton
from clipdepth_plugin.kernels.launch import (
    METRES,
    cdiv,
    channels_last,
    dot_dtype,
    kernel_op,
    launchable,
    power_of_two,
    to_metres,
)
from clipdepth_plugin.readout import Metres

if TYPE_CHECKING:
    import triton.language as tl

BLOCK_T = 32
"""Positions of a tile."""


def convex_depth(
    x_BCHW: Tensor,
    level_B1HW: Tensor,
    weight_MC: Tensor,
    bias_M: Tensor,
    *,
    metres: Metres,
    triton: bool | None = None,
) -> Tensor:
    """Metres at ``CONVEX_FACTOR`` times the map.

    Args:
        x_BCHW: (B, C, H, W), channels last: what the mask is predicted from.
        level_B1HW: (B, 1, H, W): what is mixed.
        weight_MC: (9 * R^2, C) of the mask's convolution; neighbours before sub-positions.
        bias_M: (9 * R^2,).
        metres: The activation; it has no weights.
        triton: None chooses, False is the reference, True must work or fail.

    Returns:
        (B, 1, R * H, R * W) float32 metres.

    Raises:
        KernelError: Shapes do not fit, or Triton was asked for and cannot run.
    """
    batch, channels, height, width = x_BCHW.shape
    masks = 9 * CONVEX_FACTOR**2
    expected = {
        "level": (level_B1HW, (batch, 1, height, width)),
        "weight": (weight_MC, (masks, channels)),
        "bias": (bias_M, (masks,)),
    }
    check_shapes("convex_depth", expected)
    tensors = (x_BCHW, level_B1HW, weight_MC, bias_M)
    if use_triton("convex_depth", x_BCHW.device, triton, obstacle=forward_only(tensors)):
        activation, low, high = metres.activation, metres.log_low, metres.log_high
        return convex_depth_triton(*tensors, activation, low, high)
    return convex_depth_reference(*tensors, metres=metres)


def convex_depth_reference(
    x_BCHW: Tensor, level_B1HW: Tensor, weight_MC: Tensor, bias_M: Tensor, *, metres: Metres
) -> Tensor:
    """What the kernel must give."""
    mask_BMHW = F.conv2d(x_BCHW, weight_MC[:, :, None, None], bias_M).float()
    weights_BKRHW = convex_weights(mask_BMHW, CONVEX_FACTOR)
    out_B1HW: Tensor = metres(convex_upsample(level_B1HW.float(), weights_BKRHW, CONVEX_FACTOR))
    return out_B1HW


def _empty(x_BCHW: Tensor) -> Tensor:
    batch, _, height, width = x_BCHW.shape
    shape = (batch, 1, CONVEX_FACTOR * height, CONVEX_FACTOR * width)
    return x_BCHW.new_empty(shape, dtype=torch.float32)


@kernel_op("convex_depth")
def convex_depth_triton(
    x_BCHW: Tensor,
    level_B1HW: Tensor,
    weight_MC: Tensor,
    bias_M: Tensor,
    activation: str,
    log_low: float,
    log_high: float,
) -> Tensor:
    """The kernel's launch."""
    out_B1HW = _empty(x_BCHW)
    if out_B1HW.numel() == 0:
        return out_B1HW
    batch, channels, height, width = x_BCHW.shape
    positions = batch * height * width
    # Products in float32 take the registers that a larger tile would need.
    block_m = BLOCK_T // 2 if x_BCHW.dtype == torch.float32 else BLOCK_T
    launchable(_convex_depth_fwd_kernel)[(cdiv(positions, block_m),)](
        channels_last(x_BCHW),
        level_B1HW.contiguous(),
        weight_MC.contiguous(),
        bias_M.contiguous(),
        out_B1HW,
        positions,
        height,
        width,
        channels,
        log_low,
        log_high,
        METRES=METRES[activation],
        FACTOR=CONVEX_FACTOR,
        DOT_DTYPE=dot_dtype(x_BCHW.dtype),
        BLOCK_M=block_m,
        BLOCK_K=min(power_of_two(channels), 64),
        num_warps=4,
        num_stages=2,
    )
    return out_B1HW


convex_depth_triton.register_fake(lambda x, *_: _empty(x))


def _convex_depth_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    level_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    positions,
    height,
    width,
    channels,
    log_low,
    log_high,
    METRES: tl.constexpr,
    FACTOR: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    fine: tl.constexpr = FACTOR * FACTOR
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.arange(0, fine)
    y, x = m // width % height, m % width
    highest = tl.full((BLOCK_M, fine), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M, fine), dtype=tl.float32)
    mixed = tl.zeros((BLOCK_M, fine), dtype=tl.float32)
    for neighbour in range(9):
        mask_logit = tl.zeros((BLOCK_M, fine), dtype=tl.float32)
        for start in range(0, channels, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            mask = (m < positions)[:, None] & (k < channels)[None, :]
            at = m.to(tl.int64)[:, None] * channels + k[None, :]
            tile = tl.load(x_ptr + at, mask=mask, other=0)
            at = (neighbour * fine + r)[None, :] * channels + k[:, None]
            weight = tl.load(weight_ptr + at, mask=(k < channels)[:, None], other=0)
            mask_logit = tl.dot(
                tile.to(DOT_DTYPE), weight.to(DOT_DTYPE), mask_logit, input_precision="ieee"
            )
        mask_logit += tl.load(bias_ptr + neighbour * fine + r).to(tl.float32)[None, :]
        # Beyond the border, the border again.
        row = tl.minimum(tl.maximum(y + neighbour // 3 - 1, 0), height - 1)
        column = tl.minimum(tl.maximum(x + neighbour % 3 - 1, 0), width - 1)
        at = (m // (height * width) * height + row).to(tl.int64) * width + column
        level = tl.load(level_ptr + at, mask=m < positions, other=0).to(tl.float32)
        # Softmax on the way: what was summed so far is scaled to the new maximum.
        new_highest = tl.maximum(highest, mask_logit)
        share = tl.exp(mask_logit - new_highest)
        before = tl.exp(highest - new_highest)
        total = total * before + share
        mixed = mixed * before + share * level[:, None]
        highest = new_highest
    metres = to_metres(mixed / total, log_low, log_high, METRES)
    rows = (m // (height * width) * height + y).to(tl.int64)[:, None] * FACTOR + r[
        None, :
    ] // FACTOR
    at = rows * (width * FACTOR) + x[:, None] * FACTOR + r[None, :] % FACTOR
    tl.store(out_ptr + at, metres, mask=(m < positions)[:, None] & (r >= 0)[None, :])

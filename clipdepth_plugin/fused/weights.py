"""Weights of the fused head: norms folded, convolutions composed, once and in float64.

Axes: O output and I input channels, C channels, u v a kernel's rows and columns, a b the phase
(row and column of a 2 x 2 output block), H W a map's size, h w that of a smaller map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdepth_plugin.errors import KernelError


@dataclass(frozen=True)
class Folded:
    """A convolution with what follows it folded in: (O, I, kernel, kernel) and (O,), float64.

    A group norm runs after it: its statistics depend on the map, so that it cannot be folded.
    """

    weight: Tensor
    bias: Tensor
    norm: nn.GroupNorm | None = None


def exact(x: Tensor) -> Tensor:
    """A weight in float64: where it is, or on the CPU where its device has none (MPS)."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return x.detach().to(device, torch.float64)


def fold(conv: nn.Conv2d, norm: nn.Module | None = None) -> Folded:
    """A convolution and the norm after it as one convolution."""
    weight = exact(conv.weight)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else exact(conv.bias)
    if norm is None or isinstance(norm, nn.Identity | nn.GroupNorm):
        return Folded(weight, bias, norm if isinstance(norm, nn.GroupNorm) else None)
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.running_mean is None:
        raise KernelError(
            "head.fused() folds batch norms by their running statistics and keeps group norms; "
            f"this head has a {norm}: run the plain head"
        )
    assert norm.running_var is not None
    scale = (exact(norm.running_var) + norm.eps).rsqrt() * exact(norm.weight)
    bias = (bias - exact(norm.running_mean)) * scale + exact(norm.bias)
    return Folded(weight * scale[:, None, None, None], bias)


@dataclass(frozen=True)
class Upsampling:
    """A linear map from each position to a block of 2 x 2: (C, I, 2, 2), (C, 2, 2), float64."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of_transposed(cls, conv: nn.ConvTranspose2d) -> Upsampling:
        """A transposed 2x2 convolution of stride 2."""
        assert conv.bias is not None
        weight_ICab, bias_C = exact(conv.weight), exact(conv.bias)
        return cls(weight_ICab.transpose(0, 1), bias_C[:, None, None].expand(-1, 2, 2))

    @classmethod
    def of_expanded(cls, conv: nn.Conv2d) -> Upsampling:
        """A 1x1 convolution to four times the channels, then ``F.pixel_shuffle`` by 2."""
        folded = fold(conv)
        weight_CabI = folded.weight[:, :, 0, 0].unflatten(0, (-1, 2, 2))
        return cls(weight_CabI.permute(0, 3, 1, 2), folded.bias.unflatten(0, (-1, 2, 2)))


def compose_up(up: Upsampling, smooth: Folded) -> tuple[Tensor, Tensor]:
    """An upsampling and the 3x3 convolution after it as four 2x2 convolutions; exact.

    Tap u of the 3x3 convolution at output row 2i + a reads row 2i + a + u - 1, which is sub-row
    (a + u - 1) mod 2 of the small map's row i + floor((a + u - 1) / 2).

    Returns:
        Phases (2, 2, O, I, 2, 2), of the output's row parity a and column parity b, which read the
        small map's rows i - 1 + a and i + a (columns likewise). Biases (2, 2, 2, 2, O), of a, b,
        and whether the output is in the map's outermost row (the first where a is 0, the last
        where it is 1) and column: the 3x3 convolution's zeros pad the upsampled map, bias and all,
        so that fewer biases add up there.
    """
    taps = [(u, v) for u in range(3) for v in range(3)]
    out_channels, in_channels = smooth.weight.shape[0], up.weight.shape[1]
    phases = up.weight.new_zeros(2, 2, out_channels, in_channels, 2, 2)
    bias = smooth.bias.repeat(2, 2, 2, 2, 1)
    for a in range(2):
        for b in range(2):
            for u, v in taps:
                row, sub_row = divmod(a + u - 1, 2)
                column, sub_column = divmod(b + v - 1, 2)
                tap_OC = smooth.weight[:, :, u, v]
                tap_OI = tap_OC @ up.weight[:, :, sub_row, sub_column]
                phases[a, b, :, :, row + 1 - a, column + 1 - b] += tap_OI
                shift_O = tap_OC @ up.bias[:, sub_row, sub_column]
                # A tap outside the map adds no bias.
                for at_row in range(1 if u == 2 * a else 2):
                    for at_column in range(1 if v == 2 * b else 2):
                        bias[a, b, at_row, at_column] += shift_O
    return phases, bias


def shifted_resize_matrix(low: int, high: int, *, like: Tensor) -> Tensor:
    """(high, 3 * low): resize, then each of the three taps of a zero-padded convolution's axis.

    ``sum_u out[y + u - 1]`` over maps that still wait for tap u: bilinear resize
    (``align_corners=False``) and the convolution's shifts are both linear along each axis.
    """
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    unit = torch.eye(low, dtype=dtype, device=like.device)[:, None, :, None]
    rows = F.interpolate(unit, size=(high, 1), mode="bilinear", align_corners=False)
    padded = F.pad(rows[:, 0, :, 0].T, (0, 0, 1, 1))
    taps = [padded[u : u + high] for u in range(3)]
    return torch.cat(taps, dim=1).to(like.dtype)

"""The layers of a fused head: packed weights, and which op runs them.

Axes: B views, C I O channels, H W a map's size, h w that of a smaller one, u v a kernel's taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin import ops
from clipdepth_plugin.fused.forms import Packing
from clipdepth_plugin.fused.weights import Folded, Upsampling, compose_up, shifted_resize_matrix
from clipdepth_plugin.kernels.dispatch import triton_runs_on

Activation = Literal["relu", "gelu"]


class After(nn.Module):
    """What follows a convolution and could not be folded into it or done by its op.

    A group norm, where there is one, then the residual and the activation. ``relu``: the op itself
    is to apply the ReLU.
    """

    def __init__(
        self, norm: nn.GroupNorm | None, activation: Activation | None, packing: Packing
    ) -> None:
        super().__init__()
        self.norm, self.activation = norm is not None, activation
        self.relu = activation == "relu" and norm is None
        if norm is not None:
            self.weight, self.bias = packing.pack(norm.weight), packing.pack(norm.bias)
            self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, y_BCHW: Tensor, residual_BCHW: Tensor | None = None) -> Tensor:
        """The same shape; the residual counts only behind a norm, else the op has added it."""
        if self.norm:
            y_BCHW = F.group_norm(y_BCHW, self.groups, self.weight, self.bias, self.eps)
            y_BCHW = y_BCHW if residual_BCHW is None else y_BCHW + residual_BCHW
        if self.activation == "gelu":
            return F.gelu(y_BCHW)
        return F.relu_(y_BCHW) if self.norm and self.activation == "relu" else y_BCHW


class Conv(nn.Module):
    """Convolution - norm - activation, of a map or of a map and a skip beside it.

    With a 3x3 kernel the skip may be smaller and is resized; a 1x1 kernel is a matrix product.
    """

    def __init__(self, folded: Folded, activation: Activation | None, packing: Packing) -> None:
        super().__init__()
        self.weight, self.bias = packing.pack(folded.weight), packing.pack(folded.bias)
        self.after = After(folded.norm, activation, packing)
        self.triton = packing.triton

    def forward(
        self,
        x_BCHW: Tensor,
        skip_BChw: Tensor | None = None,
        residual_BCHW: Tensor | None = None,
    ) -> Tensor:
        """(B, O, H, W)."""
        if self.weight.shape[-1] == 1:
            maps = x_BCHW if skip_BChw is None else torch.cat((x_BCHW, skip_BChw), dim=1)
            y_BHWO = F.linear(maps.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
            y_BCHW = y_BHWO.permute(0, 3, 1, 2)
        else:
            y_BCHW = ops.join_conv(
                x_BCHW,
                skip_BChw,
                self.weight,
                self.bias,
                residual_BOHW=None if self.after.norm else residual_BCHW,
                relu=self.after.relu,
                triton=self.triton,
            )
        finished: Tensor = self.after(y_BCHW, residual_BCHW)
        return finished


class Up(nn.Module):
    """Doubles the size: an upsampling and the 3x3 convolution after it, composed into one."""

    def __init__(
        self, up: Upsampling, smooth: Folded, activation: Activation, packing: Packing
    ) -> None:
        super().__init__()
        phases, bias = compose_up(up, smooth)
        self.weight = packing.pack(phases.flatten(0, 2))
        self.bias = packing.pack(bias.flatten(2, 3).flatten(0, 1))
        self.after = After(smooth.norm, activation, packing)
        self.triton = packing.triton

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, I, h, w) -> (B, O, 2h, 2w)."""
        relu = self.after.relu
        y_BCHW = ops.up_conv(x_BChw, self.weight, self.bias, relu=relu, triton=self.triton)
        finished: Tensor = self.after(y_BCHW)
        return finished


class ResizedJoin(nn.Module):
    """3x3 convolution of a map and of a smaller, resized one.

    Where PyTorch runs it, the resize moves behind its share of the convolution: both are linear, so
    the nine taps are products with the small map, and one matrix for each axis resizes, shifts and
    sums them; exact for all sizes, borders included.
    """

    def __init__(self, folded: Folded, channels: int, packing: Packing) -> None:
        """``channels``: of the map; the rest are the skip's."""
        super().__init__()
        self.whole = Conv(folded, "relu", packing)
        skip_channels = folded.weight.shape[1] - channels
        map_weight, skip_weight = folded.weight.split((channels, skip_channels), dim=1)
        self.map_weight = packing.pack(map_weight)
        self.tap_weight = packing.pack(rearrange(skip_weight, "o k u v -> (u v o) k"))
        self.triton = packing.triton

    def forward(self, x_BCHW: Tensor, skip_BChw: Tensor) -> Tensor:
        """(B, C, H, W) and (B, K, h, w) -> (B, O, H, W)."""
        asked = self.triton
        if asked or (asked is None and triton_runs_on(x_BCHW.device)):
            joined: Tensor = self.whole(x_BCHW, skip_BChw)
            return joined
        y_BCHW = F.conv2d(x_BCHW, self.map_weight, self.whole.bias, padding=1)
        y_BCHW = y_BCHW.add_(self._resized_share(skip_BChw, *x_BCHW.shape[-2:]))
        finished: Tensor = self.whole.after(F.relu_(y_BCHW) if self.whole.after.relu else y_BCHW)
        return finished

    def _resized_share(self, skip_BKhw: Tensor, height: int, width: int) -> Tensor:
        """What the resized skip adds, (B, O, H, W)."""
        low_height, low_width = skip_BKhw.shape[-2:]
        taps = F.linear(skip_BKhw.permute(0, 2, 3, 1), self.tap_weight)
        rows = shifted_resize_matrix(low_height, height, like=taps)
        columns = shifted_resize_matrix(low_width, width, like=taps)
        taps = rearrange(taps, "n h w (u v o) -> n (u h) (v w o)", u=3, v=3)
        tall = rearrange(rows @ taps, "n y (x o) -> (n y) x o", x=3 * low_width)
        return rearrange(columns @ tall, "(n y) x o -> n o y x", y=height)


class GatedJoin(nn.Module):
    """3x3 convolution of a map and its gated skips."""

    def __init__(self, gates: Sequence[Folded], folded: Folded, packing: Packing) -> None:
        """``gates``: 1x1 convolutions, of the semantic skip and perhaps of the structural one."""
        super().__init__()
        self.gate_weight = packing.pack(torch.cat([gate.weight[:, :, 0, 0] for gate in gates]))
        self.gate_bias = packing.pack(torch.cat([gate.bias for gate in gates]))
        self.join = Conv(folded, "relu", packing)
        self.triton = packing.triton

    def forward(
        self, u_BCHW: Tensor, semantic_BChw: Tensor, structural_BCHW: Tensor | None
    ) -> Tensor:
        """(B, C, H, W), (B, C, h, w) and (B, C, H, W) or None -> (B, O, H, W)."""
        skips = (semantic_BChw, structural_BCHW)
        gated_BGHW = ops.gated_skips(
            u_BCHW, *skips, self.gate_weight, self.gate_bias, triton=self.triton
        )
        joined: Tensor = self.join(u_BCHW, gated_BGHW)
        return joined

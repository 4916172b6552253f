"""From decoder maps to metres: the depth output and the auxiliary ones.

SPACE-CLIP, arXiv 2601.17657, section 3.5; the activations other than ``relu`` are ours.

Axes: B views, C channels, H W a map's size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdepth_plugin.blocks import ConvNormReLU, resize
from clipdepth_plugin.config import Activation, NormKind


class Metres(nn.Module):
    """The activation: from logits to metres. See ``HeadConfig.activation``."""

    def __init__(self, activation: Activation, depth_range: tuple[float, float]) -> None:
        """``depth_range``: ends of the ``log`` activation in metres."""
        super().__init__()
        self.activation = activation
        self.log_low, self.log_high = (math.log(end) for end in depth_range)

    def forward(self, logits_B1HW: Tensor) -> Tensor:
        """(B, 1, H, W) logits -> (B, 1, H, W) metres."""
        match self.activation:
            case "relu":
                return F.relu(logits_B1HW)
            case "softplus":
                return F.softplus(logits_B1HW)
            case "log":
                share_B1HW = torch.sigmoid(logits_B1HW)
                return torch.exp(self.log_low + (self.log_high - self.log_low) * share_B1HW)


class DepthReadout(nn.Module):
    """Conv 3x3 - norm - ReLU - Conv to one channel - activation, then resize, in metres."""

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        norm: NormKind,
        *,
        kernel: int,
        activation: Activation,
        depth_range: tuple[float, float],
    ) -> None:
        """Makes the two convolutions.

        Args:
            in_channels: Channels of the decoder stage read.
            hidden: Channels between the two convolutions.
            norm: Norm after the first.
            kernel: Kernel of the last convolution: 3 for the depth output, 1 for auxiliary ones.
            activation: See ``HeadConfig.activation``.
            depth_range: Ends of the ``log`` activation in metres.
        """
        super().__init__()
        self.hidden = ConvNormReLU(in_channels, hidden, norm)
        self.to_depth = nn.Conv2d(hidden, 1, kernel, padding=kernel // 2)
        self.metres = Metres(activation, depth_range)

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None) -> Tensor:
        """(B, C, H, W) -> (B, 1, *size) float32 metres; ``size`` None keeps (H, W).

        Activation and resize run in float32 whatever the weights' dtype: half precision keeps
        only 8 to 11 bits of a depth.
        """
        logits_B1HW = self.to_depth(self.hidden(x_BCHW)).float()
        metres_B1HW: Tensor = self.metres(logits_B1HW)
        return metres_B1HW if size is None else resize(metres_B1HW, size)

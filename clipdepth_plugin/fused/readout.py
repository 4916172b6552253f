"""The dual-path decoder's depth output in its inference form.

Axes: B views, C channels, H W a map's size.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipdepth_plugin import ops
from clipdepth_plugin.decoders.readout import DepthEstimate, DepthReadout, resized_estimate
from clipdepth_plugin.fused.forms import Packing
from clipdepth_plugin.fused.layers import Conv
from clipdepth_plugin.fused.weights import fold


class Readout(nn.Module):
    """`readout.DepthReadout`: one op where its norm folds and it has but one output."""

    def __init__(self, readout: DepthReadout, packing: Packing) -> None:
        super().__init__()
        self.hidden = Conv(fold(readout.hidden.conv, readout.hidden.norm), "relu", packing)
        self.metres = readout.metres
        self.last = Conv(fold(readout.to_depth), None, packing)
        self.confidence = readout.confidence
        self.triton = packing.triton

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None) -> DepthEstimate:
        """(B, C, H, W) -> (B, 1, *size) float32 maps; ``size`` None keeps (H, W)."""
        channels = self.metres.channels
        if not self.hidden.after.norm and channels == 1 and not self.confidence:
            return DepthEstimate(
                ops.depth_readout(
                    x_BCHW,
                    self.hidden.weight,
                    self.hidden.bias,
                    self.last.weight,
                    self.last.bias,
                    metres=self.metres,
                    size=size,
                    triton=self.triton,
                )
            )
        logits_BCHW = self.last(self.hidden(x_BCHW)).float()
        metres_B1HW = self.metres(self.metres.to_level(logits_BCHW[:, :channels]))
        return resized_estimate(
            metres_B1HW, logits_BCHW[:, channels:] if self.confidence else None, size
        )

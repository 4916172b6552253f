"""The dual-path decoder's depth output in its inference form.

Axes: B views, C channels, H W a map's size.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipdepth_plugin import ops
from clipdepth_plugin.blocks import resize
from clipdepth_plugin.fused_layers import Conv, Packing
from clipdepth_plugin.fused_weights import first_outputs, fold
from clipdepth_plugin.readout import DepthReadout


class Readout(nn.Module):
    """`readout.DepthReadout` without its confidence: one op where its norm folds."""

    def __init__(self, readout: DepthReadout, packing: Packing) -> None:
        super().__init__()
        self.hidden = Conv(fold(readout.hidden.conv, readout.hidden.norm), "relu", packing)
        self.metres = readout.metres
        last = first_outputs(fold(readout.to_depth), self.metres.channels)
        self.last = Conv(last, None, packing)
        self.triton = packing.triton

    def forward(self, x_BCHW: Tensor, size: tuple[int, int] | None) -> Tensor:
        """(B, C, H, W) -> (B, 1, *size) float32 metres; ``size`` None keeps (H, W)."""
        if self.hidden.norm is None and self.metres.channels == 1:
            return ops.depth_readout(
                x_BCHW,
                self.hidden.weight,
                self.hidden.bias,
                self.last.weight,
                self.last.bias,
                metres=self.metres,
                size=size,
                triton=self.triton,
            )
        logits_BCHW = self.last(self.hidden(x_BCHW)).float()
        metres_B1HW: Tensor = self.metres(self.metres.to_level(logits_BCHW))
        return metres_B1HW if size is None else resize(metres_B1HW, size)

"""Other people's depth heads on the same tokens, to compare with: DPT's, and a linear probe.

Not for use: they have no presets, and are trained and measured by ``results/ladder.py`` alone.

Axes: B views, N = h * w patch tokens, D tower width, C channels, H W a map's size, K bins.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from clipdepth_plugin.blocks import resize
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.pathways import tokens_to_map
from clipdepth_plugin.readout import DepthEstimate, Metres

PROBE_BINS = 256


class DPTDecoder(nn.Module):
    """transformers' DPT neck and depth head (arXiv 2103.13413), as Depth Anything V2 sizes them.

    Their channels at widths 384 and 768 are D/8, D/4, D/2 and D, fused at D/6. Levels are
    layer-normalised, as DINOv2 gives them. Only the last ReLU is another: ``config.activation``,
    as in the other heads, as a ReLU may die.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        from transformers import DPTConfig
        from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

        width = config.width
        sizes = DPTConfig(
            hidden_size=width,
            neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
            fusion_hidden_size=width // 6,
            readout_type="ignore",
        )
        self.levels = tuple(reversed(config.semantic_levels))
        self.neck = cast("nn.Module", DPTNeck(sizes))
        self.head: Any = DPTDepthEstimationHead(sizes)
        self.head.head[-1] = nn.Identity()
        self.metres = Metres(config.activation, config.depth_range)
        # The last fusion has nothing to join, so its first half is never run.
        unused: Any = self.neck.get_submodule("fusion_stage.layers.0.residual_layer1")
        unused.requires_grad_(False)

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002 (decoders are called alike)
    ) -> DepthEstimate:
        """Metres of ``size``; None gives 16 times the grid, where that has even sides."""
        normed = [_normed(features.levels[level]) for level in self.levels]
        # A row for the class token, which this readout ignores.
        rows = [F.pad(x_BND, (0, 0, 1, 0)) for x_BND in normed]
        logits_BHW = self.head(self.neck(rows, *features.grid)).float()
        metres_B1HW = self.metres(logits_BHW[:, None])
        return DepthEstimate(metres_B1HW if size is None else resize(metres_B1HW, size))


class LinearProbe(nn.Module):
    """A linear probe for depth on four levels, after DINOv2's (arXiv 2304.07193, 7.4, "lin. 4").

    Levels and context concatenated, batch norm, one linear layer to 256 depths evenly spaced over
    ``config.depth_range``, bilinearly upsampled 4 times; weights ReLU + 0.1, scaled to sum 1. In
    DINOv2's own the levels are not normalised and each has its own class token beside it (8 D
    channels, here 5 D), and the depths are those of its data set, 0.001 to 10 m.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.levels = config.semantic_levels
        channels = (len(self.levels) + 1) * config.width
        self.norm = nn.BatchNorm2d(channels)
        self.to_bins = nn.Conv2d(channels, PROBE_BINS, 1)
        depths_K = torch.linspace(*config.depth_range, PROBE_BINS)
        self.register_buffer("depths_K", depths_K, persistent=False)

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002 (decoders are called alike)
    ) -> DepthEstimate:
        """Metres of ``size``; None gives 4 times the grid."""
        normed = [_normed(features.levels[level]) for level in self.levels]
        assert features.context is not None
        context_BND = repeat(features.context, "b d -> b n d", n=normed[0].shape[1])
        x_BCHW = tokens_to_map(torch.cat([*normed, context_BND], dim=-1), features.grid)
        # A 1 x 1 convolution and a bilinear resize commute; this way round is cheaper.
        logits_BKhw = self.to_bins(self.norm(x_BCHW)).float()
        logits_BKHW = resize(logits_BKhw, (4 * features.grid[0], 4 * features.grid[1]))
        weights_BKHW = F.relu(logits_BKHW) + 0.1
        shares_BKHW = weights_BKHW / weights_BKHW.sum(dim=1, keepdim=True)
        # No matrix product: autocast would make it one of half precision.
        depths_K11 = self.get_buffer("depths_K")[:, None, None]
        metres_B1HW = (shares_BKHW * depths_K11).sum(dim=1, keepdim=True)
        return DepthEstimate(metres_B1HW if size is None else resize(metres_B1HW, size))


class DPTHead(DepthHead):
    """A depth head with DPT's decoder."""

    @staticmethod
    def make_decoder(config: HeadConfig) -> nn.Module:
        """See ``DPTDecoder``."""
        return DPTDecoder(config)


class LinearProbeHead(DepthHead):
    """A depth head that is a linear probe."""

    @staticmethod
    def make_decoder(config: HeadConfig) -> nn.Module:
        """See ``LinearProbe``."""
        return LinearProbe(config)


def _normed(x_BND: Tensor) -> Tensor:
    return F.layer_norm(x_BND, x_BND.shape[-1:])

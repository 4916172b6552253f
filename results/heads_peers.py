"""Decoders of the peers: DPT, a linear probe, ridge regression, a separate network.

Axes: B views, N patch tokens (``fit_ridge``: of all views), D tower width, L levels, C channels,
H W a map's size, h w the patch grid, K bins.
"""

from __future__ import annotations

from itertools import count, islice, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.decoders.blocks import resize
from clipdepth_plugin.decoders.decoder import Decoder, register_decoder
from clipdepth_plugin.decoders.pathways import tokens_to_map
from clipdepth_plugin.decoders.readout import (
    DepthActivation,
    DepthEstimate,
    read_estimate,
    resized_estimate,
)
from clipdepth_plugin.evaluation.ridge import RidgeSums
from clipdepth_plugin.training.batches import FeatureBatch
from clipdepth_plugin.training.session import Session

PROBE_BINS = 256
RIDGE = 1e-2
"""Penalty on standardised tokens."""


def normed_levels(features: TowerFeatures, levels: tuple[int, ...]) -> list[Tensor]:
    """Levels (B, N, D), layer-normalised as DINOv2 gives them."""
    return [F.layer_norm(x, x.shape[-1:]) for x in (features.levels[level] for level in levels)]


@register_decoder("dpt")
class DPTDecoder(Decoder):
    """transformers' DPT neck and head (arXiv 2103.13413), as Depth Anything V2 sizes them.

    Channels are D/8, D/4, D/2 and D, fused at D/6. Its last ReLU is ``config.activation``.
    """

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:  # noqa: ARG003
        """The neck gives 8 times a grid of even sides, the head doubles it."""
        return 16

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
        self.activation = DepthActivation(config.activation, config.depth_range)
        self.neck = cast("nn.Module", DPTNeck(sizes))
        self.head: Any = DPTDepthEstimationHead(sizes).head
        self.head[-2] = nn.Conv2d(32, self.activation.channels + config.confidence, 1)
        self.head[-1] = nn.Identity()
        # The last fusion has nothing to join, so its first half is never run.
        self.neck.get_submodule("fusion_stage.layers.0.residual_layer1").requires_grad_(False)

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002
    ) -> DepthEstimate:
        """See ``Decoder``."""
        # A row for the class token, which this readout ignores.
        rows = [F.pad(x_BND, (0, 0, 1, 0)) for x_BND in normed_levels(features, self.levels)]
        fused_BCHW = self.neck(rows, *features.grid)[-1]
        return read_estimate(self.activation, self.head(fused_BCHW), size)


@register_decoder("probe")
class LinearProbe(Decoder):
    """A linear probe for depth on four levels, after DINOv2's (arXiv 2304.07193, 7.4, "lin. 4").

    Levels and context concatenated, batch norm, one linear layer to 256 depths evenly spaced over
    ``config.depth_range``, bilinearly upsampled 4 times; weights ReLU + 0.1, scaled to sum 1. In
    DINOv2's own the levels are not normalised, and each has its own class token beside it.
    """

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:  # noqa: ARG003
        """As DINOv2's."""
        return 4

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.levels = config.semantic_levels
        channels = (len(self.levels) + 1) * config.width
        self.norm = nn.BatchNorm2d(channels)
        self.to_bins = nn.Conv2d(channels, PROBE_BINS + config.confidence, 1)
        depths_K = torch.linspace(*config.depth_range, PROBE_BINS)
        self.register_buffer("depths_K", depths_K, persistent=False)

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002
    ) -> DepthEstimate:
        """See ``Decoder``."""
        normed = normed_levels(features, self.levels)
        assert features.context is not None
        context_BND = repeat(features.context, "b d -> b n d", n=normed[0].shape[1])
        x_BCHW = tokens_to_map(torch.cat([*normed, context_BND], dim=-1), features.grid)
        # A 1 x 1 convolution and a bilinear resize commute; this way round is cheaper.
        logits_BChw = self.to_bins(self.norm(x_BCHW)).float()
        logits_BCHW = resize(logits_BChw, (4 * features.grid[0], 4 * features.grid[1]))
        weights_BKHW = F.relu(logits_BCHW[:, :PROBE_BINS]) + 0.1
        shares_BKHW = weights_BKHW / weights_BKHW.sum(dim=1, keepdim=True)
        # No matrix product: autocast would make it one of half precision.
        depths_K11 = self.get_buffer("depths_K")[:, None, None]
        depth_B1HW = (shares_BKHW * depths_K11).sum(dim=1, keepdim=True)
        scale_B1HW = logits_BCHW[:, PROBE_BINS:] if logits_BCHW.shape[1] > PROBE_BINS else None
        return resized_estimate(depth_B1HW, scale_B1HW, size)


@register_decoder("ridge")
class RidgeDecoder(Decoder):
    """Log depth that is linear in the tokens of four levels; ``fit_ridge`` sets its weights."""

    @classmethod
    def check(cls, config: HeadConfig) -> None:
        """See ``Decoder``."""
        if config.confidence:
            raise ValueError("confidence: ridge regression predicts none; set it to False")

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:  # noqa: ARG003
        """Bilinear in log depth."""
        return 16

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.levels = config.semantic_levels
        self.to_log = nn.Linear(len(self.levels) * config.width, 1)
        self.low, self.high = config.depth_range

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002
    ) -> DepthEstimate:
        """See ``Decoder``."""
        x_BNC = torch.cat([features.levels[level] for level in self.levels], dim=-1)
        log_B1hw = tokens_to_map(self.to_log(x_BNC), features.grid).float()
        log_B1HW = resize(log_B1hw, (16 * features.grid[0], 16 * features.grid[1]))
        return resized_estimate(log_B1HW.exp().clamp(self.low, self.high), None, size)


def fit_ridge(session: Session) -> DepthHead:
    """The head of a session, fitted in closed form to the batches that training would see.

    It has no way to learn shape without scale: views of sets whose scale does not count are left
    out.
    """
    head: DepthHead = session.context.accelerator.unwrap_model(session.model).head
    decoder = cast("RidgeDecoder", head.decoder)
    sums = RidgeSums(len(decoder.levels), head.config.width)
    batches = (batch for epoch in count() for batch in session.train.batches(epoch))
    for batch in islice(batches, session.total_steps):
        levels = [batch.features.levels[level] for level in decoder.levels]
        x_NLD = rearrange(torch.stack(levels, dim=2), "b n l d -> (b n) l d").cpu()
        log_N, has_depth_N = patch_log_depth(batch)
        if batch.scale_share_B is not None:
            metric_B = (batch.scale_share_B > 0).cpu()
            has_depth_N &= metric_B.repeat_interleave(levels[0].shape[1])
        sums.add(x_NLD[has_depth_N], log_N[has_depth_N])
    weights_LD, constant = sums.fit(range(len(decoder.levels)), RIDGE)
    with torch.no_grad():
        decoder.to_log.weight.copy_(weights_LD.flatten()[None])
        decoder.to_log.bias.fill_(constant)
    return head.cpu()


def patch_log_depth(batch: FeatureBatch) -> tuple[Tensor, Tensor]:
    """(N,) mean log depth of each patch's valid pixels, and whether it has any."""
    valid_B1HW = batch.valid_B1HW.double()
    log_B1HW = batch.target_B1HW.double().clamp_min(1e-6).log() * valid_B1HW
    size = batch.features.grid
    log_N, share_N = (
        F.adaptive_avg_pool2d(x, size).flatten().cpu() for x in (log_B1HW, valid_B1HW)
    )
    return log_N / share_N, share_N > 0


@register_decoder("mobilenet")
class MobileNetDecoder(Decoder):
    """A small network of its own, from scratch, which reads the pixels and no token.

    timm's MobileNetV3-small with a decoder after FastDepth (arXiv 1903.03273): depthwise separable
    5 x 5 convolutions, nearest-neighbour upsampling, additive skips. It is twice as wide as
    FastDepth's, which makes the whole about as slow as ``guided``; linear layers fit the skips to
    its widths.
    """

    CHANNELS = (1024, 512, 256, 128, 64)

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:  # noqa: ARG003
        """Its maps have the pixels' size, 14 times the grid of the demo tower."""
        return 14

    @classmethod
    def reads_pixels(cls, config: HeadConfig) -> bool:  # noqa: ARG003
        """And nothing else."""
        return True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        import timm

        encoder: Any = timm.create_model("mobilenetv3_small_100", features_only=True)
        self.encoder = encoder
        *skips, deepest = encoder.feature_info.channels()
        wide = pairwise([deepest, *self.CHANNELS])
        self.up = nn.ModuleList(_separable(one, other) for one, other in wide)
        self.skips = nn.ModuleList(
            nn.Conv2d(one, other, 1)
            for one, other in zip(reversed(skips), self.CHANNELS[:-1], strict=True)
        )
        self.activation = DepthActivation(config.activation, config.depth_range)
        self.to_logit = nn.Conv2d(
            self.CHANNELS[-1], self.activation.channels + config.confidence, 1
        )

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,  # noqa: ARG002
    ) -> DepthEstimate:
        """See ``Decoder``."""
        assert features.pixels is not None
        return self.estimate(features.pixels, size)

    def estimate(self, pixels_B3HW: Tensor, size: tuple[int, int] | None = None) -> DepthEstimate:
        """Depth of pixels as the tower takes them."""
        *skips, x_BCHW = self.encoder(pixels_B3HW)
        for conv, fit, skip_BCHW in zip(self.up[:-1], self.skips, reversed(skips), strict=True):
            x_BCHW = F.interpolate(conv(x_BCHW), size=skip_BCHW.shape[-2:]) + fit(skip_BCHW)
        x_BCHW = F.interpolate(self.up[-1](x_BCHW), size=pixels_B3HW.shape[-2:])
        return read_estimate(self.activation, self.to_logit(x_BCHW), size)


def _separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """Depthwise 5 x 5 and pointwise convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 5, padding=2, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )

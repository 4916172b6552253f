"""DepthHead: tower features in, metric depth out; a plain module that knows no host.

Axes: B views, D tower width, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.config import DECODERS, HeadConfig, scale_levels
from clipdepth_plugin.decoders.decoder import Decoder
from clipdepth_plugin.decoders.inputs import checked_features, checked_size
from clipdepth_plugin.decoders.readout import DepthEstimate, calibrated, with_confidence
from clipdepth_plugin.errors import ConfigError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.weights.hub import HubMixin

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead


class DepthHead(HubMixin):
    """Depth from the intermediate features of a frozen vision tower.

    In metres, unless ``config.metric`` is False.

    Saved and loaded by ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        config: What defines the head's function.
        decoder: All that has weights, of the class that ``config.decoder`` names.
    """

    def __init__(self, config: HeadConfig) -> None:
        """Builds the head with random weights, in training mode like every new module."""
        super().__init__()
        check_type(config, HeadConfig, "the head's config", ConfigError)
        self.config = config
        self.decoder: Decoder = DECODERS[config.decoder](config)

    @property
    def reads_pixels(self) -> bool:
        """Whether ``TowerFeatures.pixels`` is read, and so tapped."""
        return self.config.reads_pixels

    @classmethod
    def for_host(
        cls,
        host: nn.Module,
        preset: str = "spaceclip",
        *,
        tower: str | None = None,
        **options: Any,
    ) -> Self:
        """A new head with random weights that fits a host's tower.

        The width is the tower's; the preset's levels are scaled to its number of blocks
        (k * blocks / 12, rounded); the context is ``pooled`` where the tower has it, else
        ``cls``, else ``mean``.

        Args:
            host: Any model that ``attach`` takes.
            preset: A name in ``config.PRESETS``.
            tower: Module path of the tower, where the host has several.
            options: Fields of ``HeadConfig`` that override the preset, as they are.

        Raises:
            TowerNotFoundError: No tower, or several and no choice.
            ConfigError: No such preset or option, or an option that contradicts the others or the
                tower.
        """
        found = choose_tower(host, tower)
        where = f"a head for {found}"
        given = {"width": found.width, "preset": preset}
        switches = {name: options[name] for name in ("film", "structural") if name in options}
        defaults = checked(HeadConfig, {**given, **switches}, where, ConfigError)
        scaled: dict[str, Any] = {
            "semantic_levels": scale_levels(defaults.semantic_levels, found.depth)
        }
        if defaults.structural:
            levels = scale_levels(defaults.structural_levels, found.depth)
            scaled["structural_levels"] = levels
        if defaults.film:
            scaled["context"] = found.contexts[0]
        config = checked(HeadConfig, {**given, **scaled, **options}, where, ConfigError)
        if config.width != found.width:
            raise ConfigError(f"{where}: width {config.width} is not the tower's; leave it out")
        return cls(config)

    def forward(self, features: TowerFeatures, size: tuple[int, int] | None = None) -> Tensor:
        """Depth of each view.

        Args:
            features: Levels (B, h*w, D) that ``config.levels`` names, the context where FiLM is
                on, and the pixels where there is an image stem. Cast to the head's dtype.
            size: Output (H, W); None gives the native size, ``config.upsampling`` times (h, w).

        Returns:
            (B, 1, H, W) float32 metres; relative depth where ``config.metric`` is False.

        Raises:
            FeaturesError: A level, the context or the pixels are missing, or of another width.
            HostError: ``size`` is no size.
        """
        return self.estimate(features, size).depth

    def forward_with_confidence(
        self, features: TowerFeatures, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, and how sure it is.

        Returns:
            (B, 1, H, W) float32 metres, and of the same size the probability, 0..1, that the true
            depth is within a factor of 1.25 of them.

        Raises:
            HeadMismatchError: The head was made without ``config.confidence``.
        """
        return with_confidence(self.estimate(features, size))

    def forward_with_aux(
        self, features: TowerFeatures, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``forward``, with the auxiliary outputs that deep supervision trains.

        Returns:
            (B, 1, H, W) float32 metres, and ``config.auxiliary`` more of that size; with
            ``size`` None those of stage i are (B, 1, 2^(i+1) h, 2^(i+1) w).
        """
        estimate = self.estimate(features, size, auxiliary=True)
        return estimate.depth, list(estimate.auxiliary)

    def estimate(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None = None,
        *,
        auxiliary: bool = False,
    ) -> DepthEstimate:
        """Everything that the head predicts, as its loss takes it; see ``forward``."""
        size = checked_size(size)
        checked = checked_features(features, self.config, next(self.parameters()))
        decode = functools.partial(self.decoder, checked, auxiliary=auxiliary)
        return calibrated(decode, self.config, size)

    def fused(
        self,
        dtype: torch.dtype | None = None,
        *,
        triton: bool | None = None,
        graphs: int = 8,
    ) -> FusedHead:
        """The inference form: the same function in less time, without gradients.

        On an NVIDIA GPU it runs as a few Triton kernels, in a CUDA graph from the second call of a
        shape on; elsewhere in PyTorch, folded and composed. ``make bench-kernels`` compares it
        with the plain and the compiled head. It holds copies of the weights as they are now, where
        they are now, and takes the head's place everywhere: ``attach(host, head.fused())``.

        Args:
            dtype: Of weights and maps; None: the head's. ``torch.bfloat16`` is the fastest on GPUs
                and on processors with AVX512-BF16 or AMX; depth stays float32.
            triton: None chooses, False is PyTorch, True must work or say why it can't.
            graphs: CUDA graphs that are kept, one for each shape of the features and output; 0:
                none.

        Raises:
            KernelError: The head's decoder has no fused form, or (when it is called) Triton was
                asked for and cannot run.
        """
        from clipdepth_plugin.fused.head import FusedHead

        return FusedHead(self.config, self.decoder, dtype, triton=triton, graphs=graphs)

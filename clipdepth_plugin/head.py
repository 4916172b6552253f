"""DepthHead: tower features in, metric depth out.

The FiLM dual-path head of SPACE-CLIP (arXiv 2601.17657, section 3) as a plain module that can
be called, trained, compiled and exported alone; it knows no host.

Axes: B views, D tower width, C channels of a stage, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.config import HeadConfig, Preset, scale_levels
from clipdepth_plugin.errors import FeaturesError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fusion import FusionStage
from clipdepth_plugin.hub import HubMixin
from clipdepth_plugin.pathways import SemanticPathway, StructuralPathway
from clipdepth_plugin.readout import DepthReadout


class DepthHead(nn.Module, HubMixin):
    """Depth in metres from the intermediate features of a frozen vision tower.

    Saved and loaded by ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Attributes:
        config: What defines the head's function.
        semantic: The semantic pathway: FiLM and projections.
        structural: The structural pathway, or None.
        fusion: The decoder stages.
        readout: The depth output.
        auxiliary: Depth outputs of the first stages, run by ``forward_with_aux`` only.
    """

    def __init__(self, config: HeadConfig) -> None:
        """Builds the head with random weights, in training mode like every new module."""
        super().__init__()
        self.config = config
        channels = config.channels
        self.semantic = SemanticPathway(
            config.width,
            config.semantic_levels,
            channels,
            film_hidden=config.film_hidden if config.film else None,
        )
        self.structural = (
            StructuralPathway(config.width, config.structural_levels, channels[:-1], config.norm)
            if config.structural
            else None
        )
        last = len(channels) - 1
        self.fusion = nn.ModuleList(
            FusionStage(
                channels[max(i - 1, 0)],
                channels[i],
                config.norm,
                structural=config.structural and i < last,
                dropout=config.dropout,
            )
            for i in range(len(channels))
        )
        output: dict[str, Any] = {
            "activation": config.activation,
            "depth_range": config.depth_range,
        }
        norm, hidden = config.norm, max(channels[-1] // 2, 1)
        self.readout = DepthReadout(channels[-1], hidden, norm, kernel=3, **output)
        self.auxiliary = nn.ModuleList(
            DepthReadout(c, max(c // 2, 16), norm, kernel=1, **output)
            for c in channels[: config.auxiliary]
        )

    @classmethod
    def for_host(
        cls,
        host: nn.Module,
        preset: Preset = "spaceclip",
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
            preset: Where the head's shape comes from.
            tower: Module path of the tower, where the host has several.
            options: Fields of ``HeadConfig`` that override the preset, as they are.

        Raises:
            TowerNotFoundError: No tower, or several and no choice.
            pydantic.ValidationError: An option contradicts the others.
        """
        found = choose_tower(host, tower)
        defaults = HeadConfig(width=found.width, preset=preset)
        scaled: dict[str, Any] = {
            "semantic_levels": scale_levels(defaults.semantic_levels, found.depth),
            "structural_levels": scale_levels(defaults.structural_levels, found.depth),
            "context": found.contexts[0],
        }
        return cls(HeadConfig(**{"width": found.width, "preset": preset, **scaled, **options}))

    def forward(self, features: TowerFeatures, size: tuple[int, int] | None = None) -> Tensor:
        """Depth of each view.

        Args:
            features: Levels (B, h*w, D) that ``config.levels`` names, and the context where
                FiLM is on. Cast to the head's dtype.
            size: Output (H, W); None gives the native size, ``config.upsampling`` times (h, w).

        Returns:
            (B, 1, H, W) float32 metres.

        Raises:
            FeaturesError: A level or the context is missing, or has another width.
        """
        *_, last_BCHW = self._decode(features)
        metres: Tensor = self.readout(last_BCHW, size)
        return metres

    def forward_with_aux(
        self, features: TowerFeatures, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``forward``, with the auxiliary outputs that deep supervision trains.

        Returns:
            (B, 1, H, W) float32 metres, and ``config.auxiliary`` more of that size; with
            ``size`` None those of stage i are (B, 1, 2^(i+1) h, 2^(i+1) w).
        """
        stages = self._decode(features)
        auxiliary = [
            read(x_BCHW, size) for read, x_BCHW in zip(self.auxiliary, stages, strict=False)
        ]
        return self.readout(stages[-1], size), auxiliary

    def _decode(self, features: TowerFeatures) -> list[Tensor]:
        """The maps of all fusion stages, (B, C_i, 2^(i+1) h, 2^(i+1) w)."""
        features = self._checked(features)
        semantic = self.semantic(features)
        structural: list[Tensor | None] = (
            [None] * len(semantic)
            if self.structural is None
            else [*self.structural(features), None]
        )
        x_BCHW, stages = semantic[0], []
        for stage, skip_BChw, skip_BCHW in zip(self.fusion, semantic, structural, strict=True):
            x_BCHW = stage(x_BCHW, skip_BChw, skip_BCHW)
            stages.append(x_BCHW)
        return stages

    def _checked(self, features: TowerFeatures) -> TowerFeatures:
        """The levels and the context that the head reads, in its dtype.

        Raises:
            FeaturesError: One is missing or has another width.
        """
        config = self.config
        missing = [level for level in config.levels if level not in features.levels]
        if missing:
            raise FeaturesError(
                f"the head reads levels {list(config.levels)}; levels {missing} are missing "
                f"(got {sorted(features.levels)})"
            )
        if config.film and features.context is None:
            raise FeaturesError(
                f"the head's FiLM needs the {config.context!r} context, got None; give "
                "TowerFeatures(context=...) or train a head with film=False"
            )
        dtype = self.readout.to_depth.weight.dtype
        read = {level: features.levels[level].to(dtype) for level in config.levels}
        context = (
            features.context.to(dtype) if config.film and features.context is not None else None
        )
        for name, value in (*((f"level {k}", x) for k, x in read.items()), ("context", context)):
            if value is not None and value.shape[-1] != config.width:
                raise FeaturesError(
                    f"{name} has width {value.shape[-1]}; the head was made for {config.width}"
                )
        return TowerFeatures(read, context, features.grid, features.pixels)

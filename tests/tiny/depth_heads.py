"""Small heads of each decoder, and features for them without a tower.

Axes: B views, N patch tokens, D tower width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.settings import STORED

WIDTH = 16
SMALL: dict[str, Any] = {"width": WIDTH, "channels": (16, 8, 8, 8), "film_hidden": 8}
FAST: dict[str, Any] = {"preset": "fast", "channels": (16, 8, 8)}
GUIDED: dict[str, Any] = {**FAST, "preset": "guided", "stem_channels": 4}
EACH_DECODER = pytest.mark.parametrize(
    "decoder", [{"activation": "softplus"}, FAST, GUIDED], ids=["dual-path", "compact", "guided"]
)


def make_features(
    config: HeadConfig,
    grid: tuple[int, int] = (3, 3),
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    patch: int = 16,
) -> TowerFeatures:
    """Random features that a head of this config reads."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    levels = {k: random(batch, grid[0] * grid[1], config.width) for k in config.levels}
    context = random(batch, config.width) if config.film else None
    size = (patch * grid[0], patch * grid[1])
    return TowerFeatures(
        levels, context, grid, random(batch, 3, *size) if config.reads_pixels else None
    )


def make_head(**options: Any) -> DepthHead:
    """A small head from a seed, in evaluation mode."""
    torch.manual_seed(0)
    return DepthHead(HeadConfig.model_validate({**SMALL, **options}, context=STORED)).eval()

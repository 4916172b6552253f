"""Hugging Face Molmo2 vision towers.

Traits: each crop is given as its flattened patches, row-major, as many as the tower has positions;
its config says the size of a crop.

Axes: B crops, N = h * w patches, P numbers of a patch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.adapters import layout_rules, layouts, traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import ImageError, NoDepthError


@dataclass(frozen=True)
class CropRule(layout_rules.LayoutRule):
    """Crops of one ``grid``; each is a view."""

    patch_size: Size
    grid: Size
    order = "row-major"
    reads = ()

    @property
    def takes(self) -> tuple[str | int, ...]:
        count, numbers = self.grid[0] * self.grid[1], 3 * self.patch_size[0] * self.patch_size[1]
        return "crops", count, numbers

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        crops, patches = call.pixels_shape[:2]
        h, w = self.grid
        if patches != h * w:
            raise NoDepthError(f"crops of {patches} patches, where the tower's have {h} x {w}")
        size = h * self.patch_size[0], w * self.patch_size[1]
        view_tokens = [
            layouts.ViewTokens(
                self.grid,
                size,
                torch.arange(patches) + crop * patches,
                functools.partial(self._pixels, crop=crop),
            )
            for crop in range(crops)
        ]
        return layouts.GatheredLayout([(crops, patches)], view_tokens)

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        (h, w), (ph, pw) = self.grid, self.patch_size
        sizes = {tuple(view.shape[1:]) for view in views}
        if sizes != {(h * ph, w * pw)}:
            raise ImageError(
                f"crops of {sorted(sizes)} for a tower that takes {h * ph} x {w * pw} alone"
            )
        pattern = "c (h ph) (w pw) -> (h w) (ph pw c)"
        return torch.stack([rearrange(view, pattern, ph=ph, pw=pw) for view in views]), {}

    def _pixels(self, patches_BNP: Tensor, crop: int) -> Tensor:
        (h, w), (ph, pw) = self.grid, self.patch_size
        pattern = "(h w) (ph pw c) -> c (h ph) (w pw)"
        return rearrange(patches_BNP[crop], pattern, h=h, w=w, ph=ph, pw=pw)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    size = traits.image_size_of(tower)
    if traits.model_type_of(tower) != "molmo2_vision" or size is None:
        return None
    patch = int(tower.config.patch_size)
    grid = size[0] // patch, size[1] // patch
    return traits.TowerTraits("hf_molmo2", image_size=size, rule=CropRule((patch, patch), grid))

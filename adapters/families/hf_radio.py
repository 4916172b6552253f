"""Hugging Face RADIO towers.

Traits: class tokens and registers first; pictures of one size are cut into patches by the tower.
With ``image_grid_hw`` their patches are given instead, picture after picture, and each keeps its
class tokens before it.

Axes: R packed patches or tokens, P numbers of a patch, N = h * w patch tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.adapters import layout_rules, layouts, traits
from clipdepth_plugin.adapters.clips import ClipRule
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError


@dataclass(frozen=True)
class RadioRule(ClipRule):
    """Pictures of one size, or packed patches where their grids are given."""

    reads: ClassVar[tuple[str, ...]] = ("image_grid_hw",)

    @property
    def order(self) -> str:
        return "row-major; packed pictures one after another where image_grid_hw is given"

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        if "image_grid_hw" not in call.arguments:
            return super().resolve(call)
        grids: list[Size] = [
            (int(h), int(w)) for h, w in layout_rules.require(call, "image_grid_hw").tolist()
        ]
        if sum(h * w for h, w in grids) != call.pixels_shape[0]:
            raise NoDepthError(
                f"image_grid_hw {grids} does not account for {call.pixels_shape[0]} patches"
            )
        view_tokens: list[layouts.ViewTokens] = []
        patches = tokens = 0
        for h, w in grids:
            rows_N = torch.arange(h * w)
            view_tokens.append(
                layouts.ViewTokens(
                    (h, w),
                    (h * self.patch_size[0], w * self.patch_size[1]),
                    rows_N + tokens + self.before,
                    functools.partial(self._packed_pixels, rows_N=rows_N + patches, grid=(h, w)),
                    tokens,
                )
            )
            patches, tokens = patches + h * w, tokens + self.before + h * w
        return layouts.GatheredLayout([(1, tokens)], view_tokens)

    def _packed_pixels(self, patches_RP: Tensor, rows_N: Tensor, grid: Size) -> Tensor:
        patches_NP = patches_RP[rows_N.to(patches_RP.device)]
        (h, w), (ph, pw) = grid, self.patch_size
        return rearrange(
            patches_NP, "(h w) (c ph pw) -> c (h ph) (w pw)", h=h, w=w, ph=ph, pw=pw, c=3
        )


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if traits.model_type_of(tower) != "radio":
        return None
    config = tower.config
    patch, before = int(config.patch_size), int(config.num_summary_tokens)
    return traits.TowerTraits(
        "hf_radio",
        before,
        config.num_cls_tokens > 0,
        image_size=traits.image_size_of(tower),
        rule=RadioRule((patch, patch), before, class_token=0 if config.num_cls_tokens else None),
        stem=tower.embeddings,
    )

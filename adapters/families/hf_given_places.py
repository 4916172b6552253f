"""Hugging Face towers that are given the place of each patch: Gemma 4, Pix2Struct, Kosmos-2.5.

Traits: rows of flattened patches, padded; Gemma 4's ``pixel_position_ids`` have (column, row), -1
for padding; Pix2Struct's and Kosmos-2.5's patches begin with (row, column) from 1, 0 for padding.
Tokens are put where these say.

Axes: B views, T tokens of the longest or more, N = h * w patch tokens, P numbers of a patch.
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
from clipdepth_plugin.adapters.modules import patch_embeddings
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError

_PLACES = ("pixel_position_ids", "flattened_patches")


@dataclass(frozen=True)
class GivenPlacesRule(layout_rules.LayoutRule):
    """``said_by`` is the argument that says the places."""

    patch_size: Size
    said_by: str
    order = "padded; each patch where the tower is told that it is"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.said_by,)

    @property
    def takes(self) -> tuple[str | int, ...]:
        numbers = 3 * self.patch_size[0] * self.patch_size[1]
        return "images", "patches", numbers + 2 * (self.said_by == "flattened_patches")

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        given = layout_rules.require(call, self.said_by).cpu()
        if self.said_by == "flattened_patches":
            places_BT2 = given[..., :2].long() - 1
        else:
            places_BT2 = given.flip(-1)
        batch, length = call.patches_shape[:2]
        if tuple(places_BT2.shape) != (batch, length, 2):
            raise NoDepthError(
                f"{self.said_by} of shape {tuple(given.shape)} does not say the places of "
                f"{batch} x {length} patches"
            )
        view_tokens = [
            self._view(index, index * length, places_T2)
            for index, places_T2 in enumerate(places_BT2)
            if bool((places_T2 >= 0).any())
        ]
        return layouts.GatheredLayout([(batch, length)], view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return True

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        ph, pw = self.patch_size
        pattern = "c (h ph) (w pw) -> (h w) (ph pw c)"
        rows, places = [], []
        for view in views:
            h, w = layout_rules.grid_of(view, self.patch_size)
            rows.append(rearrange(view, pattern, ph=ph, pw=pw))
            places.append(torch.cartesian_prod(torch.arange(h), torch.arange(w)) + 1)
        # From 1, so that padding is 0.
        places_BT2, patches_BTP = layout_rules.patch_rows(places), layout_rules.patch_rows(rows)
        if self.said_by == "flattened_patches":
            patches_BTP = torch.cat([places_BT2.to(patches_BTP), patches_BTP], dim=-1)
            return patches_BTP, {"attention_mask": (places_BT2[..., 0] > 0).float()}
        return patches_BTP, {self.said_by: places_BT2.flip(-1) - 1}

    def _view(self, index: int, start: int, places_T2: Tensor) -> layouts.ViewTokens:
        real_N = (places_T2 >= 0).all(dim=-1).nonzero().flatten()
        rows_N, columns_N = places_T2[real_N].unbind(-1)
        h, w = grid = int(rows_N.max()) + 1, int(columns_N.max()) + 1
        order_N = (rows_N * w + columns_N).argsort()
        if not torch.equal((rows_N * w + columns_N)[order_N], torch.arange(h * w)):
            raise NoDepthError(
                f"view {index}: the places in {self.said_by} do not fill a grid of {h} x {w}, so "
                "they make no map"
            )
        patch_h, patch_w = self.patch_size
        return layouts.ViewTokens(
            grid,
            (h * patch_h, w * patch_w),
            real_N[order_N] + start,
            functools.partial(self._pixels, index=index, rows_N=real_N[order_N], grid=grid),
        )

    def _pixels(self, patches_BTP: Tensor, index: int, rows_N: Tensor, grid: Size) -> Tensor:
        patches_NP = patches_BTP[index, rows_N.to(patches_BTP.device)]
        (h, w), (ph, pw) = grid, self.patch_size
        pattern = "(h w) (ph pw c) -> c (h ph) (w pw)"
        return rearrange(patches_NP, pattern, h=h, w=w, ph=ph, pw=pw)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    told = [name for name in _PLACES if name in traits.parameters_of(tower)]
    found = [one for one in patch_embeddings(tower) if one.packed]
    if not told or not found:
        return None
    return traits.TowerTraits("hf_given_places", rule=GivenPlacesRule(found[0].patch_size, told[0]))

"""Hugging Face SigLIP vision towers, alone or inside PaliGemma and its kin.

Traits: no prefix tokens; many hosts leave out the attention-pooling ``head`` (PaliGemma). SigLIP2's
NaFlex towers (LFM2-VL's, too) take rows of flattened patches, padded at their end.

Axes: B views, T tokens of the longest view or more, N = h * w patch tokens, P numbers of a patch.
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
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError

_MODEL_TYPES = ("siglip", "siglip2", "siglip_vision_model", "siglip2_vision_model")
# transformers 4.57 and 5.5 call the inner tower's mask ``attention_mask``.
_MASKS = ("pixel_attention_mask", "attention_mask")


@dataclass(frozen=True)
class NaflexRule(layout_rules.LayoutRule):
    """``spatial_shapes`` says how many of a row's tokens are patches, row-major, and their grid."""

    patch_size: Size
    order = "NaFlex: row-major, padded to the longest"
    reads = ("spatial_shapes", *_MASKS)

    @property
    def takes(self) -> tuple[str | int, ...]:
        return "images", "patches", 3 * self.patch_size[0] * self.patch_size[1]

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        batch, length = call.patches_shape[:2]
        grids: list[Size] = [
            (h, w) for h, w in layout_rules.require(call, "spatial_shapes", batch).tolist()
        ]
        self._check_masks(call, [h * w for h, w in grids], length)
        patch_h, patch_w = self.patch_size
        view_tokens = [
            layouts.ViewTokens(
                (h, w),
                (h * patch_h, w * patch_w),
                torch.arange(h * w) + index * length,
                functools.partial(self._pixels, index=index, grid=(h, w)),
            )
            for index, (h, w) in enumerate(grids)
        ]
        return layouts.GatheredLayout([(batch, length)], view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return True

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        grids = [layout_rules.grid_of(view, self.patch_size) for view in views]
        ph, pw = self.patch_size
        pattern = "c (h ph) (w pw) -> (h w) (ph pw c)"
        patches_BTP = layout_rules.patch_rows([rearrange(x, pattern, ph=ph, pw=pw) for x in views])
        counts_B = torch.tensor([h * w for h, w in grids])
        mask_BT = (torch.arange(patches_BTP.shape[1]) < counts_B[:, None]).int()
        said = {"spatial_shapes": torch.tensor(grids), **dict.fromkeys(_MASKS, mask_BT)}
        return patches_BTP, said

    def _check_masks(self, call: layout_rules.TowerCall, counts: list[int], length: int) -> None:
        real_BT = torch.arange(length) < torch.tensor(counts)[:, None]
        for name in _MASKS:
            mask = call.arguments.get(name)
            if mask is not None and not torch.equal(torch.as_tensor(mask).cpu() != 0, real_BT):
                raise NoDepthError(
                    f"{name} does not keep just the first {counts} tokens that spatial_shapes "
                    "says: which of them are patches is not known"
                )

    def _pixels(self, patches_BTP: Tensor, index: int, grid: Size) -> Tensor:
        patches_NP = patches_BTP[index, : grid[0] * grid[1]]
        h, w = grid
        ph, pw = self.patch_size
        pattern = "(h w) (ph pw c) -> c (h ph) (w pw)"
        return rearrange(patches_NP, pattern, h=h, w=w, ph=ph, pw=pw)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if traits.model_type_of(tower) not in _MODEL_TYPES:
        return None
    patch = getattr(getattr(tower, "embeddings", None), "patch_size", None)
    packed = "spatial_shapes" in traits.parameters_of(tower)
    pools = hasattr(tower.head, "probe") if hasattr(tower, "head") else False
    return traits.TowerTraits(
        "hf_siglip",
        pooled=traits.PooledTap(tower.head, traits.first_token) if pools else None,
        preprocessing=traits.published(tower, HALF_NORMALISATION),
        image_size=traits.image_size_of(tower),
        rule=NaflexRule((patch, patch)) if packed and isinstance(patch, int) else None,
        read_by=traits.LLAVA_KIN,
    )

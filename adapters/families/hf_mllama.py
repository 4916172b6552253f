"""Hugging Face Mllama towers (Llama 3.2 Vision).

Traits: all tiles of an image are one row, each a class token, its patches and padding to a multiple
of 8; ``aspect_ratio_mask`` says which tiles are real (none where ``aspect_ratio_ids`` is 0). A
second list of blocks follows the first, with a norm and a tile embedding between them.

Axes: I images, K tiles of each, T tokens of a tile, N = h * w of them its patches.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipdepth_plugin.adapters import layout_rules, layouts, traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.errors import NoDepthError

_MULTIPLE = 8


@dataclass(frozen=True)
class MllamaRule(layout_rules.LayoutRule):
    """Each real tile is a view; padding tiles and padding tokens are left out."""

    takes = ("prompts", "images", "tiles", 3, "H", "W")
    order = "row-major tiles, each padded; padding tiles between"
    reads = ("aspect_ratio_mask", "aspect_ratio_ids")

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        count, _, height, width = call.pixels_shape
        grid = call.patches_shape[-2], call.patches_shape[-1]
        mask = layout_rules.require(call, "aspect_ratio_mask")
        tiles = mask.shape[-1]
        real_IK = mask.reshape(-1, tiles).cpu() != 0
        ids_I = layout_rules.require(call, "aspect_ratio_ids").reshape(-1).cpu()
        if real_IK.numel() != count or len(ids_I) != len(real_IK):
            raise NoDepthError(
                f"aspect_ratio_mask {tuple(mask.shape)} and aspect_ratio_ids {tuple(ids_I.shape)} "
                f"do not fit {count} tiles"
            )
        # Of an image that is padding, too, the mask keeps a tile, so that attention has something.
        real_IK &= (ids_I > 0)[:, None]
        patches = grid[0] * grid[1]
        length = -(-(1 + patches) // _MULTIPLE) * _MULTIPLE
        view_tokens = [
            layouts.ViewTokens(
                grid,
                (height, width),
                torch.arange(patches) + tile * length + 1,
                operator.itemgetter(tile),
                tile * length,
            )
            for tile in real_IK.flatten().nonzero().flatten().tolist()
        ]
        return layouts.GatheredLayout([(len(real_IK), tiles * length)], view_tokens)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    tiled = {"aspect_ratio_ids", "aspect_ratio_mask"} <= {*traits.parameters_of(tower)}
    if not (tiled and hasattr(tower, "global_transformer")):
        return None
    return traits.TowerTraits(
        "hf_mllama",
        num_prefix_tokens=1,
        has_class_token=True,
        image_size=traits.image_size_of(tower),
        rule=MllamaRule(),
        more_blocks=tuple(tower.global_transformer.layers),
    )

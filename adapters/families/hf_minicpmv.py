"""Hugging Face MiniCPM-V 4.6, 4.7 and MiniCPM-OCR vision towers.

Traits: the patches of all pictures, row-major, are one picture that is a patch high, a row of
tokens; ``target_sizes`` has each picture's grid. After one of its blocks the tower merges squares
of tokens, unless the host says "4x": the blocks after that one give no patches.

Axes: R packed tokens, N = h * w patch tokens.
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


@dataclass(frozen=True)
class StripRule(layout_rules.LayoutRule):
    """Pictures' patches one after another in a strip."""

    patch_size: Size
    order = "packed: pictures one after another, each row-major"
    reads = ("target_sizes",)

    @property
    def takes(self) -> tuple[str | int, ...]:
        return 1, 3, self.patch_size[0], "W"

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        grids: list[Size] = [
            (int(h), int(w)) for h, w in layout_rules.require(call, "target_sizes").tolist()
        ]
        count = call.patches_shape[-1]
        if call.patches_shape[-2] != 1 or sum(h * w for h, w in grids) != count:
            raise NoDepthError(
                f"target_sizes {grids} do not account for the patches of {call.pixels_shape}"
            )
        view_tokens: list[layouts.ViewTokens] = []
        start = 0
        for h, w in grids:
            view_tokens.append(
                layouts.ViewTokens(
                    (h, w),
                    (h * self.patch_size[0], w * self.patch_size[1]),
                    torch.arange(h * w) + start,
                    functools.partial(self._pixels, start=start, grid=(h, w)),
                )
            )
            start += h * w
        return layouts.GatheredLayout([(1, count)], view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return True

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        grids = [layout_rules.grid_of(view, self.patch_size) for view in views]
        ph, pw = self.patch_size
        pattern = "c (h ph) (w pw) -> c ph (h w pw)"
        strips = [rearrange(view, pattern, ph=ph, pw=pw) for view in views]
        return torch.cat(strips, dim=-1)[None], {"target_sizes": torch.tensor(grids).int()}

    def _pixels(self, strip: Tensor, start: int, grid: Size) -> Tensor:
        (h, w), pw = grid, self.patch_size[1]
        part = strip[0, ..., start * pw : (start + h * w) * pw]
        return rearrange(part, "c ph (h w pw) -> c (h ph) (w pw)", h=h, w=w, pw=pw)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if not (hasattr(tower, "vit_merger") and "target_sizes" in traits.parameters_of(tower)):
        return None
    merges_after = int(tower.config.insert_layer_id)
    said = [getattr(getattr(one, "config", None), "downsample_mode", None) for one in ancestors]
    whole = "4x" in said or merges_after < 0
    return traits.TowerTraits(
        "hf_minicpmv",
        rule=StripRule(next(patch_embeddings(tower)).patch_size),
        patch_blocks=None if whole else merges_after + 1,
    )

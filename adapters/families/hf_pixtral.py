"""Hugging Face Pixtral towers, alone or inside Mistral 3 and LLaVA.

Traits: pictures of a batch are padded to one size for the patch embedding, then cut to their own
(``image_sizes``) and packed into one row of tokens, picture after picture; no class token. vLLM's
tower takes a list of pictures, and embeds one after another.

Axes: B views, R packed tokens, N = h * w patch tokens, H W pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters import layout_rules, layouts, traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import is_convolution
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError


@dataclass(frozen=True)
class PixtralRule(layout_rules.LayoutRule):
    """Pictures one after another in one row."""

    patch_size: Size
    order = "packed: pictures one after another, each row-major"
    from_list: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("pixel_values",) if self.from_list else ("image_sizes",)

    @property
    def sees_each_alone(self) -> bool:
        return self.from_list

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        batch, _, height, width = call.pixels_shape
        given = call.arguments.get("image_sizes", [(height, width)] * batch)
        given = given.tolist() if isinstance(given, Tensor) else given
        if self.from_list:
            given = [one.shape[1:] for one in call.arguments.get("pixel_values", [])]
            batch = len(given)
            height, width = (max((one[axis] for one in given), default=0) for axis in (0, 1))
        sizes: list[Size] = [(int(size[0]), int(size[1])) for size in given]
        if len(sizes) != batch or any(h > height or w > width for h, w in sizes):
            raise NoDepthError(
                f"image_sizes {sizes} do not fit {batch} pictures padded to {height} x {width}"
            )
        view_tokens: list[layouts.ViewTokens] = []
        start = 0
        for index, size in enumerate(sizes):
            grid = size[0] // self.patch_size[0], size[1] // self.patch_size[1]
            rows_N = torch.arange(grid[0] * grid[1]) + start
            pixels = operator.itemgetter((index, ..., slice(size[0]), slice(size[1])))
            view_tokens.append(layouts.ViewTokens(grid, size, rows_N, pixels))
            start += len(rows_N)
        return layouts.GatheredLayout([(1, start)], view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return not self.from_list

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.from_list and len({tuple(view.shape) for view in views}) == 1:
            return torch.stack([*views]), {}
        for view in views:
            layout_rules.grid_of(view, self.patch_size)
        sizes = torch.tensor([tuple(view.shape[1:]) for view in views])
        return layout_rules.padded_behind(views), {"image_sizes": sizes}


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    patch_conv = getattr(tower, "patch_conv", None)
    if patch_conv is None or not is_convolution(patch_conv):
        return None
    told = "image_sizes" in traits.parameters_of(tower)
    if not told and not hasattr(tower, "patch_positional_embedding"):
        return None
    height, width_ = (int(side) for side in patch_conv.kernel_size)
    return traits.TowerTraits("hf_pixtral", rule=PixtralRule((height, width_), from_list=not told))

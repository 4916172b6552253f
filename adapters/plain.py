"""The layout rule of plain towers: a row of tokens for each picture.

Idefics, SmolVLM and their kin pad the smaller pictures of a batch and give their tower a mask of
the real patches: a view is cropped to those.

Axes: B views, N tokens, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layout_rules import LayoutRule, TowerCall, grid_of, padded_behind
from clipdepth_plugin.adapters.layouts import GatheredLayout, PlainLayout, TokenLayout, ViewTokens
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import Views

# Pretraining's masks: their patches are replaced or weighed, none is padding.
_NOT_PADDING = ("bool_masked_pos", "head_mask")
# True, or 1, is a real patch.
_PATCH_MASK = "patch_attention_mask"
_MARKS_REAL = (_PATCH_MASK, "pixel_attention_mask", "pixel_mask", "attention_mask")
# In part of a name: torch's convention, where True is to be ignored.
_MARKS_PADDING = "padding_mask"
# Arguments that say how tokens are packed; a tower that takes one needs a rule of its own.
PACKING = (
    *("grid_thw", "image_grid_thw", "video_grid_thw", "grid_hws", "image_grid_hws"),
    *("spatial_shapes", "image_sizes", "target_sizes", "tgt_sizes", "merge_sizes"),
    *("pixel_position_ids", "cu_seqlens", "aspect_ratio_ids"),
)


@dataclass(frozen=True)
class PlainRule(LayoutRule):
    """Rows of prefix tokens and patches; cropped to a mask of patches where the tower is given one.

    ``parameters`` are the names of the tower's; ``needs_more``: it requires more than the pictures.
    """

    num_prefix_tokens: int
    sequence_first: bool
    patch_size: Size
    parameters: tuple[str, ...] = ()
    needs_more: bool = False

    @property
    def order(self) -> str:
        masks = [name for name in self.reads if "patch" in name]
        rows = "row-major" if not self.sequence_first else "row-major, tokens before views"
        return f"{rows}, cut to {masks[0]} where it is given" if masks else rows

    @property
    def reads(self) -> tuple[str, ...]:
        masks = (name for name in self.parameters if "mask" in name and name not in _NOT_PADDING)
        return (*masks, *(name for name in self.parameters if name in PACKING))

    def resolve(self, call: TowerCall) -> TokenLayout:
        (batch, *_, height, width) = call.pixels_shape
        grid_h, grid_w = grid = (call.patches_shape[-2], call.patches_shape[-1])
        # A tower that takes nothing but pictures cuts them into patches itself.
        if grid_h == 1 and (
            self.needs_more or any(name in PACKING or "patch" in name for name in self.reads)
        ):
            raise NoDepthError(
                f"the patch embedding was given {call.pixels_shape}: pictures one patch high are "
                "patches that were cut before, in an order that its adapter does not know"
            )
        mask_Bhw = self._mask(call, (batch, *grid))
        if mask_Bhw is None:
            views = Views(batch, grid, (height, width))
            return PlainLayout(views, self.num_prefix_tokens, sequence_first=self.sequence_first)
        count = self.num_prefix_tokens + grid_h * grid_w
        view_tokens = [
            self._view(index, _box(mask_hw, index), grid, (height, width))
            for index, mask_hw in enumerate(mask_Bhw)
        ]
        return GatheredLayout([(batch, count)], view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return _PATCH_MASK in self.parameters

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Padded behind where they differ in size, the real patches in a mask."""
        if not self.mixes_sizes or len({view.shape for view in views}) == 1:
            return super().pack(views)
        ones = [
            view.new_ones(grid_of(view, self.patch_size), dtype=torch.bool)[None] for view in views
        ]
        return padded_behind(views), {_PATCH_MASK: padded_behind(ones)[:, 0]}

    def _mask(self, call: TowerCall, shape: tuple[int, ...]) -> Tensor | None:
        """The mask of real patches (B, h, w) that the tower was given; None where all are real."""
        for name, value in call.arguments.items():
            if name in PACKING:
                raise NoDepthError(
                    f"the tower was given {name}, which says how its tokens are packed; its "
                    "adapter does not know that packing"
                )
            if isinstance(value, bool):
                continue  # a switch, which marks no patches
            real = _real(torch.as_tensor(value), name)
            if bool(real.all()):
                continue
            if (
                self.sequence_first
                or real.shape[:1] != shape[:1]
                or real.numel() != math.prod(shape)
            ):
                raise NoDepthError(
                    f"the tower was given {name} of shape {tuple(real.shape)}, which leaves parts "
                    f"out; its adapter understands masks of {shape} = (views, *patch grid)"
                )
            return real.reshape(shape).cpu()
        return None

    def _view(
        self, index: int, box: tuple[int, int, int, int], grid: Size, pixel_size: Size
    ) -> ViewTokens:
        top, left, bottom, right = box
        rows_hw = torch.arange(grid[0] * grid[1]).reshape(grid)[top:bottom, left:right]
        offset = index * (self.num_prefix_tokens + grid[0] * grid[1])
        patch_h, patch_w = self.patch_size
        # The picture's last, incomplete patches are no part of the grid, but of the picture.
        end_h = pixel_size[0] if bottom == grid[0] else bottom * patch_h
        end_w = pixel_size[1] if right == grid[1] else right * patch_w
        area = slice(top * patch_h, end_h), slice(left * patch_w, end_w)
        return ViewTokens(
            (bottom - top, right - left),
            (end_h - top * patch_h, end_w - left * patch_w),
            rows_hw.flatten() + offset + self.num_prefix_tokens,
            operator.itemgetter((index, ..., *area)),
            offset,
        )


def _real(mask: Tensor, name: str) -> Tensor:
    """Where a mask of the tower's says that patches are real, in the mask's own shape."""
    padding = _MARKS_PADDING in name
    if not padding and name not in _MARKS_REAL:
        if not bool((mask == 1).all()):
            raise NoDepthError(
                f"the tower was given {name} of shape {tuple(mask.shape)}: it is not known which "
                f"patches that marks. Known are {', '.join(_MARKS_REAL)} (True: real) and "
                f"*{_MARKS_PADDING} (True: ignored)"
            )
        return torch.ones_like(mask, dtype=torch.bool)
    real = mask == 0 if padding else mask != 0
    if mask.is_floating_point() and not bool(real.all()):
        raise NoDepthError(
            f"the tower was given {name} of {mask.dtype}, which leaves parts out: what is added to "
            "attention scores marks no patches; give it as bool"
        )
    return real


def _box(mask_hw: Tensor, index: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the real patches, which must be a full rectangle."""
    rows, columns = (mask_hw.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise NoDepthError(
            f"view {index} is padding alone, by the mask that the host gave its tower"
        )
    box = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    if not bool(mask_hw[box[0] : box[2], box[1] : box[3]].all()):
        raise NoDepthError(
            f"view {index}: the patches that the host calls real are no rectangle, so they make "
            "no map"
        )
    return box

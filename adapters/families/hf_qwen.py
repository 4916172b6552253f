"""Hugging Face Qwen-VL towers (2, 2.5, 3 and what is built as they are: ERNIE, MiniMax, PaddleOCR).

Traits: the patches of all images and videos are one row, those of a merge square (2 x 2) beside
each other; Qwen2.5 puts squares in the order of its attention windows. ``grid_thw`` gives temporal
patches, rows and columns; a temporal patch (two frames, an image twice) is a view. Other towers
look alike, so each pass proves the order by the rotary positions that the blocks get.

Axes: R packed tokens, N = h * w patch tokens, (t, h, w) grid, (H, W) grid of merge squares, m side
of a square in patches, C rotary channels, P numbers of a patch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin.adapters import layout_rules, layouts, traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import block_lists, patch_embeddings
from clipdepth_plugin.adapters.rotary import check_positions
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError


@dataclass(frozen=True)
class Packing:
    """What a tower's structure does not tell of how patches are given to it.

    Attributes:
        proven: Whether the blocks' positions prove the order. Else it is read in the tower's code,
            where learned positions are laid out in it.
        axes: Those of pixels before each patch's own, where patches are given as pictures.
        channels_last: Whether a flattened patch has the colours of each pixel together.
    """

    proven: bool = True
    axes: tuple[str | int, ...] = ()
    channels_last: bool = False


_PACKINGS = {
    "cosmos3_edge_vision": Packing(proven=False, channels_last=True),
    "hunyuan_vl_vision": Packing(proven=False),
    "hy_v4_vl_vision": Packing(proven=False),
    "kimi_k25_vision": Packing(axes=("patches",)),
    "paddleocr_vl_vision": Packing(axes=("pictures", "patches")),
}
"""By model type."""


@dataclass(frozen=True)
class QwenRule(layout_rules.LayoutRule):
    """Temporal patches packed in merge order, and those in window order where there are windows.

    Sides: of a patch in pixels, of a merge square in patches, of a window in merge squares;
    ``frames`` is how many make a temporal patch.
    """

    patch_size: Size
    frames: int
    merge: int
    window: int | None
    packing: Packing = Packing()
    reads = ("grid_thw", "window_index", "merge_sizes")

    @property
    def proves(self) -> bool:
        return self.packing.proven

    @property
    def takes(self) -> tuple[str | int, ...]:
        if self.packing.axes:
            return *self.packing.axes, 3, *self.patch_size
        return "patches", 3 * self.frames * self.patch_size[0] * self.patch_size[1]

    @property
    def order(self) -> str:
        if self.merge == 1:
            return "packed: pictures one after another, each row-major"
        squares = f"packed in merge order, squares of {self.merge} x {self.merge} patches"
        if self.window is None:
            return squares
        return f"{squares}, those in windows of {self.window} x {self.window} squares"

    def resolve(self, call: layout_rules.TowerCall) -> layouts.TokenLayout:
        grids = layout_rules.require(call, "grid_thw").tolist()
        frames: list[Size] = [(h, w) for t, h, w in grids for _ in range(t)]
        merges = [
            m
            for (t, _, _), m in zip(grids, self._merges(call, grids), strict=True)
            for _ in range(t)
        ]
        if any(side % m for grid, m in zip(frames, merges, strict=True) for side in grid):
            raise NoDepthError(f"grid_thw {grids} is not made of squares of {merges} patches")
        counts = [h * w for h, w in frames]
        starts = itertools.accumulate(counts, initial=0)
        patches = [
            _merge_order(grid, m) + start
            for grid, m, start in zip(frames, merges, starts, strict=False)
        ]
        order_R = self._block_order(call, frames)
        patch_h, patch_w = self.patch_size
        view_tokens = [
            layouts.ViewTokens(
                grid,
                (grid[0] * patch_h, grid[1] * patch_w),
                rows_N if order_R is None else order_R[rows_N],
                functools.partial(self._pixels, rows_N=rows_N, grid=grid),
            )
            for grid, rows_N in zip(frames, patches, strict=True)
        ]
        if self.packing.proven:
            check_positions(call, view_tokens)
        shapes = [(sum(counts),), (1, sum(counts)), (sum(counts), 1)]  # the last: vLLM's
        return layouts.GatheredLayout(shapes, view_tokens)

    @property
    def mixes_sizes(self) -> bool:
        return True

    @property
    def square(self) -> int:
        return self.merge

    def pack(self, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view is a picture: of a temporal patch all frames are the same."""
        grids = [layout_rules.grid_of(view, self.patch_size, self.merge) for view in views]
        patches = torch.cat(
            [self._patches(view, grid) for view, grid in zip(views, grids, strict=True)]
        )
        if self.packing.axes:
            patches = patches.unflatten(1, (3, *self.patch_size))
        if len(self.packing.axes) > 1:
            patches = patches[None]
        grid_thw = torch.tensor([(1, *grid) for grid in grids])
        return patches, {
            "grid_thw": grid_thw,
            "merge_sizes": torch.full((len(views),), self.merge),
        }

    def _patches(self, view_3HW: Tensor, grid: Size) -> Tensor:
        """The flattened patches of a view, in merge order."""
        patch = "ph pw c t" if self.packing.channels_last else "c t ph pw"
        return rearrange(
            view_3HW.expand(self.frames, *view_3HW.shape),
            f"t c (H mh ph) (W mw pw) -> (H W mh mw) ({patch})",
            mh=self.merge,
            mw=self.merge,
            ph=self.patch_size[0],
            pw=self.patch_size[1],
        )

    def _merges(self, call: layout_rules.TowerCall, grids: list[list[int]]) -> list[int]:
        """The side of each picture's merge squares (VideoLLaMA 3's differ)."""
        if "merge_sizes" not in call.arguments:
            return [self.merge] * len(grids)
        given = layout_rules.require(call, "merge_sizes", len(grids))
        return [int(side) for side in given.tolist()]

    def _block_order(self, call: layout_rules.TowerCall, frames: list[Size]) -> Tensor | None:
        """For each packed patch the row at which the blocks have it; None where it is its own."""
        if self.window is None:
            return None
        square = self.merge**2
        given = call.arguments.get("window_index")
        squares = self._window_order(frames) if given is None else torch.as_tensor(given).cpu()
        return rearrange(
            squares.argsort()[:, None] * square + torch.arange(square), "s within -> (s within)"
        )

    def _window_order(self, frames: list[Size]) -> Tensor:
        """The merge squares of all views, window after window and row-major inside."""
        assert self.window is not None
        orders = []
        start = 0
        for grid in frames:
            h, w = grid[0] // self.merge, grid[1] // self.merge
            y_hw, x_hw = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            window_hw = (y_hw // self.window) * w + x_hw // self.window
            orders.append(window_hw.flatten().argsort(stable=True) + start)
            start += h * w
        return torch.cat(orders)

    def _pixels(self, patches: Tensor, rows_N: Tensor, grid: Size) -> Tensor:
        """The first frame of a temporal patch."""
        patches_NP = patches[rows_N.to(patches.device)].flatten(1)
        h, w = grid
        ph, pw = self.patch_size
        patch = "ph pw c t" if self.packing.channels_last else "c t ph pw"
        pattern = f"(h w) ({patch}) -> t c (h ph) (w pw)"
        return rearrange(patches_NP, pattern, h=h, w=w, c=3, ph=ph, pw=pw)[0]


def _merge_order(grid: Size, merge: int) -> Tensor:
    """For each patch, row-major, its number among the view's patches as they are packed."""
    h, w = grid[0] // merge, grid[1] // merge
    packed = torch.arange(grid[0] * grid[1])
    pattern = "(H W mh mw) -> (H mh W mw)"
    return rearrange(packed, pattern, H=h, W=w, mh=merge, mw=merge)


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    parameters, kind = traits.parameters_of(tower), traits.model_type_of(tower)
    embedding = next(patch_embeddings(tower), None)
    if "grid_thw" not in parameters or embedding is None:
        return None
    # A tower that says no merge square has plain rows (PaddleOCR-VL's).
    merge = getattr(tower, "spatial_merge_size", 1)
    packing = _PACKINGS.get(kind, Packing())
    if not isinstance(merge, int) or (packing.proven and not _tells_blocks_positions(tower)):
        return None
    windowed = hasattr(tower, "fullatt_block_indexes")
    window = tower.window_size // merge // embedding.patch_size[0] if windowed else None
    rule = QwenRule(embedding.patch_size, embedding.frames, merge, window, packing)
    return traits.TowerTraits("hf_qwen", rule=rule)


def _tells_blocks_positions(tower: nn.Module) -> bool:
    blocks = (one.blocks[0] for one in block_lists(tower))
    parts = (part for block in blocks for part in block.modules())
    told = {layout_rules.POSITIONS, layout_rules.COS_SIN[0]}
    return any(told & {*traits.parameters_of(part)} for part in parts)

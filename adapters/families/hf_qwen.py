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

from clipdepth_plugin.adapters import layouts, traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import patch_embeddings
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError


@dataclass(frozen=True)
class QwenRule(layouts.LayoutRule):
    """Temporal patches packed in merge order, and those in window order where there are windows.

    Sides: of a patch in pixels, of a merge square in patches, of a window in merge squares;
    ``frames`` is how many make a temporal patch; ``as_pictures``: whether each patch is given as a
    picture.
    """

    patch_size: Size
    frames: int
    merge: int
    window: int | None
    as_pictures: bool = False
    reads = ("grid_thw", "window_index")
    proves = True

    @property
    def takes(self) -> tuple[str | int, ...]:
        if self.as_pictures:
            return "pictures", "patches", 3, *self.patch_size
        return "patches", 3 * self.frames * self.patch_size[0] * self.patch_size[1]

    @property
    def order(self) -> str:
        if self.merge == 1:
            return "packed: pictures one after another, each row-major"
        squares = f"packed in merge order, squares of {self.merge} x {self.merge} patches"
        if self.window is None:
            return squares
        return f"{squares}, those in windows of {self.window} x {self.window} squares"

    def resolve(self, call: layouts.TowerCall) -> layouts.TokenLayout:
        grids = layouts.require(call, "grid_thw").tolist()
        frames: list[Size] = [(h, w) for t, h, w in grids for _ in range(t)]
        if any(side % self.merge for grid in frames for side in grid):
            raise NoDepthError(
                f"grid_thw {grids} is not made of {self.merge} x {self.merge} squares"
            )
        counts = [h * w for h, w in frames]
        starts = itertools.accumulate(counts, initial=0)
        patches = [
            self._merge_order(grid) + start for grid, start in zip(frames, starts, strict=False)
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
        check_positions(call, view_tokens)
        return layouts.GatheredLayout([(sum(counts),), (1, sum(counts))], view_tokens)

    def _merge_order(self, grid: Size) -> Tensor:
        """For each patch, row-major, its number among the view's patches as they are packed."""
        h, w = grid[0] // self.merge, grid[1] // self.merge
        packed = torch.arange(grid[0] * grid[1])
        pattern = "(H W mh mw) -> (H mh W mw)"
        return rearrange(packed, pattern, H=h, W=w, mh=self.merge, mw=self.merge)

    def _block_order(self, call: layouts.TowerCall, frames: list[Size]) -> Tensor | None:
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
        pattern = "(h w) (c t ph pw) -> t c (h ph) (w pw)"
        return rearrange(patches_NP, pattern, h=h, w=w, c=3, ph=ph, pw=pw)[0]


BFLOAT16_ROWS = 257
"""From 0 to 256; 257 is rounded to 256."""


def check_positions(call: layouts.TowerCall, view_tokens: Sequence[layouts.ViewTokens]) -> None:
    """Whether the rotary positions (cos, sin) that the blocks get are those of the views.

    Each channel must turn by the same angle from row to row, or from column to column, and one fast
    enough to tell rows apart, one columns. Half precision rounds far rows' angles by more than a
    turn: there each channel must be constant along rows, or columns, and slow ones must grow.
    """
    cos_sin = call.arguments.get(layouts.POSITIONS)
    if not (isinstance(cos_sin, list | tuple) and len(cos_sin) == 2):
        raise NoDepthError(
            f"the tower's blocks get no {layouts.POSITIONS}, so the order of its tokens cannot be "
            "proven"
        )
    turns_2RC = torch.stack([x.float().flatten(0, -2) for x in cos_sin])
    turns = _turns if cos_sin[0].dtype in (torch.float32, torch.float64) else _grows
    if sum(len(one.rows_N) for one in view_tokens) != turns_2RC.shape[1]:
        raise NoDepthError(f"grid_thw does not account for {turns_2RC.shape[1]} tokens")
    for index, view in enumerate(view_tokens):
        turns_2NC = turns_2RC[:, view.rows_N.to(turns_2RC.device)]
        turns_2hwC = rearrange(turns_2NC, "xy (h w) c -> xy h w c", h=view.grid[0])
        by_row_C, tells_rows = turns(turns_2hwC)
        by_column_C, tells_columns = turns(turns_2hwC.transpose(1, 2))
        if not bool((by_row_C | by_column_C).all() & tells_rows & tells_columns):
            if cos_sin[0].dtype == torch.bfloat16 and max(view.grid) > BFLOAT16_ROWS:
                raise NoDepthError(
                    f"view {index}: its grid of {view.grid[0]} x {view.grid[1]} can't be proven, "
                    f"as bfloat16 positions do not tell more than {BFLOAT16_ROWS} rows or columns "
                    "apart: compute the tower's positions in float32, or show a smaller picture"
                )
            raise NoDepthError(
                f"view {index}: the positions that the tower's blocks get are not those of a grid "
                f"of {view.grid[0]} x {view.grid[1]} in the order that its adapter knows"
            )


def _turns(turns_2hwC: Tensor) -> tuple[Tensor, Tensor]:
    """(which channels turn evenly from row to row, whether any of them tells rows apart).

    Those of time turn a view's tokens all alike: they say nothing of rows.
    """
    rows = turns_2hwC.shape[1]
    second_2C = turns_2hwC[:, min(1, rows - 1), 0]
    angle_C = torch.atan2(second_2C[1], second_2C[0])
    angles_hC = torch.arange(rows, device=angle_C.device)[:, None] * angle_C
    expected_2hC = torch.stack([angles_hC.cos(), angles_hC.sin()])
    even_C = ((turns_2hwC - expected_2hC[:, :, None]).abs() < 0.02).all(dim=0).all(dim=0).all(dim=0)
    tells = (even_C & (angle_C.abs() > 0.1)).any() if rows > 1 else torch.ones_like(even_C).any()
    alike_C = ((turns_2hwC - turns_2hwC[:, :1, :1]).abs() < 0.02).all(dim=0).all(dim=0).all(dim=0)
    return even_C | alike_C, tells


def _grows(turns_2hwC: Tensor) -> tuple[Tensor, Tensor]:
    """As ``_turns``, by what rounding leaves: (constant in each row, whether sines tell rows)."""
    constant_C = (turns_2hwC == turns_2hwC[:, :, :1]).all(dim=0).all(dim=0).all(dim=0)
    sines_hC = turns_2hwC[1, :, 0, constant_C]
    slow_C = (sines_hC[:1] == 0).all(dim=0) & (sines_hC.diff(dim=0) >= 0).all(dim=0)
    apart_h = (sines_hC[:, slow_C].diff(dim=0) > 0).any(dim=1)
    return constant_C, apart_h.all() & constant_C.any()


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if "grid_thw" not in traits.parameters_of(tower):
        return None
    embedding = next(patch_embeddings(tower), None)
    # A tower that says no merge square has plain rows (PaddleOCR-VL's).
    merge = getattr(tower, "spatial_merge_size", 1)
    if embedding is None or not isinstance(merge, int):
        return None
    stem = embedding.module
    frames = int(stem.kernel_size[0]) if isinstance(stem, nn.Conv3d) else 1
    windowed = hasattr(tower, "fullatt_block_indexes")
    window = tower.window_size // merge // embedding.patch_size[0] if windowed else None
    cut = isinstance(stem, nn.Conv2d)
    return traits.TowerTraits(
        "hf_qwen",
        rule=QwenRule(embedding.patch_size, frames, merge, window, as_pictures=cut),
    )

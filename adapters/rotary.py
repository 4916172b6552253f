"""Proves a token order by the rotary positions that a tower gives its blocks.

Axes: R packed tokens, N = h * w patch tokens, C rotary channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from clipdepth_plugin.adapters import layout_rules, layouts
from clipdepth_plugin.errors import NoDepthError

BFLOAT16_ROWS = 257
"""From 0 to 256; 257 is rounded to 256."""


def check_positions(
    call: layout_rules.TowerCall, view_tokens: Sequence[layouts.ViewTokens]
) -> None:
    """Whether the rotary positions (cos, sin) that the blocks get are those of the views.

    Each channel must turn by the same angle from row to row, or from column to column, and one fast
    enough to tell rows apart, one columns. Half precision rounds far rows' angles by more than a
    turn: there each channel must be constant along rows, or columns, and slow ones must grow.
    """
    cos_sin = call.arguments.get(layout_rules.POSITIONS)
    if not (isinstance(cos_sin, list | tuple) and len(cos_sin) == 2):
        raise NoDepthError(
            f"the tower's blocks get no {layout_rules.POSITIONS}, so the order of its "
            "tokens cannot be proven"
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

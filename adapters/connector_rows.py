"""Where the visual tokens of each view are in what a connector gives.

Axes: B views, n visual tokens of a view, (h, w) patch grid, m side of the square of patches that
makes one visual token, T a picture's tokens before the connector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from clipdepth_plugin.adapters.connectors import Connector
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.errors import HostError


def rows_of_views(one: TowerPass, connector: Connector, shape: Sequence[int]) -> list[Tensor]:
    """Where the visual tokens of each view are in what the connector gave.

    Args:
        one: The tower pass.
        connector: The connector.
        shape: Of its output, without the width.

    Returns:
        Rows (B, n) of the flattened output, row-major over the merged grid, for each of
        ``one.views``.

    Raises:
        HostError: The output has not as many tokens as the pass has squares of patches.
    """
    layout, tower = one.layout, one.tower
    count, length = math.prod(shape), layout.row_length
    pictures = (max(int(rows_BN.max()) for rows_BN in layout.rows) // length) + 1
    each, rest = divmod(count, pictures)
    grids = [views.grid for views in one.views]
    m = connector.merge or (1 if each in (length, length - tower.num_prefix_tokens) else None)
    whole = m is not None and all(h % m == 0 and w % m == 0 for h, w in grids)
    if rest == 0 and m is not None and whole:
        found = _of_squares(one, m, each)
        if found is None and tower.rule.square == 1 and pictures == 1:
            found = _one_after_another(layout.rows, m, count)
        if found is not None:
            return found
    raise HostError(
        f"the connector {connector.path} gave {tuple(shape)} tokens for {pictures} pictures of "
        f"{length} before it, of patch grids {grids}"
        + (f" and squares of {m} x {m}" if m else "")
        + ": which patches a token is of is not known"
    )


def _of_squares(one: TowerPass, m: int, each: int) -> list[Tensor] | None:
    """The rows of each view, of squares of patches; ``each``: a picture's tokens."""
    rows = []
    for rows_BN, views in zip(one.layout.rows, one.views, strict=True):
        h, w = (side // m for side in views.grid)
        pattern = "b (h mh w mw) -> b (h w) (mh mw)"
        cells_Bnm = rearrange(rows_BN.cpu(), pattern, h=h, w=w, mh=m, mw=m)
        found = _merged(cells_Bnm, m, one, each)
        if found is None:
            return None
        rows.append(found)
    return rows


def _merged(cells_Bnm: Tensor, m: int, one: TowerPass, each: int) -> Tensor | None:
    """The connector's rows (B, n), from the rows before it of each square's patches."""
    tower, length = one.tower, one.layout.row_length
    grid = one.patches_shape[-2], one.patches_shape[-1]
    prefix = tower.num_prefix_tokens
    pictures_Bn, places_Bn = cells_Bnm[..., 0] // length, cells_Bnm[..., 0] % length
    if m == 1:
        skipped = {length: 0, length - prefix: prefix}.get(each)
        return None if skipped is None else pictures_Bn * each + places_Bn - skipped
    if m == tower.rule.square:  # the patches of a square follow each other
        squares_Bnm = cells_Bnm // m**2
        one_each = bool((squares_Bnm == squares_Bnm[..., :1]).all())
        return squares_Bnm[..., 0] if one_each and each * m**2 == length else None
    if math.prod(grid) != length - prefix or each * m**2 != math.prod(grid):
        return None
    y_Bn, x_Bn = (places_Bn - prefix) // grid[1], (places_Bn - prefix) % grid[1]
    if any(side % m for side in grid) or bool(((y_Bn % m) + (x_Bn % m)).any()):
        return None
    return pictures_Bn * each + (y_Bn // m) * (grid[1] // m) + x_Bn // m


def _one_after_another(rows: Sequence[Tensor], m: int, count: int) -> list[Tensor] | None:
    """The same for views that are packed row-major, one after another, and merged alike."""
    flat = torch.cat([rows_BN.flatten().cpu() for rows_BN in rows])
    if count * m**2 != len(flat) or not torch.equal(flat, torch.arange(len(flat))):
        return None
    counts = [rows_BN.numel() // m**2 for rows_BN in rows]
    found = torch.arange(count).split(counts)
    return [rows_n.view(len(rows_BN), -1) for rows_n, rows_BN in zip(found, rows, strict=True)]

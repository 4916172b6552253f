"""Pictures of coordinates, and what leads them through a packed host's tower.

Axes: B views, N tokens, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, find_towers
from tests.tiny.case import PATCH
from tests.tiny.packed import EVERY_PACKED
from tests.tiny.packed_case import Grid, PackedCase, release

MakeHead = Callable[..., DepthHead]
BY_NAME = {case.name: case for case in EVERY_PACKED}
# Towers of transformers before 5.6 have an inner vision_model.
BEFORE_5_6 = release() < (5, 6)


def present(name: str) -> PackedCase:
    """A row of the table, where the installed transformers has its host."""
    if BY_NAME[name].absent:
        pytest.skip(f"transformers {transformers.__version__} lacks {name}")
    return BY_NAME[name]


def coordinates(grids: Sequence[Grid]) -> list[Tensor]:
    """Pictures whose patches say where they are: red the row, green the column, blue the picture.

    Counted from 1, so that nothing of a picture is what padding is.
    """
    pictures = []
    for index, (h, w) in enumerate(grids):
        y_hw, x_hw = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        small_3hw = torch.stack([y_hw, x_hw, torch.full_like(y_hw, index)]).float() + 1
        patch = torch.ones(1, PATCH, PATCH)
        pictures.append(torch.kron(small_3hw, patch))
    return pictures


def let_coordinates_through(host: nn.Module, case: PackedCase) -> None:
    """Makes the tower's tokens the mean red, green and blue of their patches, in every level."""
    (tower,) = find_towers(host)
    for parameter in tower.module.parameters():
        nn.init.zeros_(parameter)  # a block without weights adds nothing to its input
    maps = (nn.Linear, nn.Conv2d, nn.Conv3d)
    weight = next(one for one in tower.patch_embed.modules() if isinstance(one, maps)).weight
    if weight.ndim == 2:  # of flattened patches
        per_channel = weight.shape[1] // 3
        for channel in range(3):
            first = slice(channel * per_channel, (channel + 1) * per_channel)
            of_channel = first if case.channels_first else slice(channel, None, 3)
            nn.init.constant_(weight.data[channel, of_channel], 1 / per_channel)
    else:
        for channel in range(3):
            nn.init.constant_(weight.data[channel, channel], 1 / weight[0, 0].numel())
    for norm in case.norms:
        identity = nn.Identity()
        identity.weight = tower.module.get_parameter(f"{norm}.weight")
        setattr(tower.module, norm, identity)


def views_of(batches: Sequence[TowerFeatures]) -> list[tuple[TowerFeatures, int]]:
    """(features, index in them) of each view, in order."""
    return [(one, index) for one in batches for index in range(one.batch)]


def all_levels(
    make_head: MakeHead, host: nn.Module, case: PackedCase, context: str = "mean"
) -> DepthHead:
    """A head that reads every level."""
    levels = tuple(range(case.depth, case.depth - 4, -1))
    return make_head(host, semantic_levels=levels, structural_levels=(2, 1, 0), context=context)


def close(first: Any, second: Any, tolerance: float) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance)

"""Runs a tower alone, for a caller of its own, no further than its taps need.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.taps import Taps, leaving_early, may_leave_early, owners
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import NoDepthError


def run_tower(
    tower: Tower,
    taps: Taps,
    recorder: PassRecorder,
    pixels_B3HW: Tensor,
    tower_kwargs: dict[str, Any],
) -> TowerPass:
    """One tower pass without a graph; seen by no other recorder.

    Args:
        tower: The tower.
        taps: Its taps, installed or not; they stay as they were.
        recorder: Theirs.
        pixels_B3HW: (B, 3, H, W), normalised as the tower takes them; carried to its device and
            dtype.
        tower_kwargs: Passed on to the tower.

    Raises:
        NoDepthError: The tower ran without its hooks.
    """
    # Another plug-in's taps may be deeper in the tower than ours.
    alone = all(owner is taps.owner for owner in owners(tower))
    early = leaving_early(recorder, allowed=alone and may_leave_early(tower, tower_kwargs))
    taps.install()
    try:
        with recorder.privately() as seen, torch.no_grad(), early:
            tower.module(_as_tower_takes(pixels_B3HW, tower), **tower_kwargs)
    finally:
        taps.remove()
    if not seen:
        raise NoDepthError(
            f"the tower {tower} ran without its patch embedding being called: it was compiled "
            "or graphed before; attach the plug-in first, then call it"
        )
    return seen[-1]


def _as_tower_takes(pixels_B3HW: Tensor, tower: Tower) -> Tensor:
    """On the tower's device and in its dtype; as they are where its weights are offloaded."""
    weight = next(tower.patch_embed.parameters())
    device = pixels_B3HW.device if weight.is_meta else weight.device
    dtype = weight.dtype if weight.is_floating_point() else pixels_B3HW.dtype
    return pixels_B3HW.to(device, dtype)

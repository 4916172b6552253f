"""What is checked before a head meets a tower, and pixels a tower.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.adapters.identity import check_same_tower
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import HeadMismatchError, ImageError
from clipdepth_plugin.head import DepthHead

if TYPE_CHECKING:
    from clipdepth_plugin.fused import FusedHead  # brings triton in


def check_fit(head: DepthHead | FusedHead, tower: Tower) -> None:
    """Whether a head can read a tower.

    Raises:
        HeadMismatchError: Says what the head needs and what the tower has.
    """
    config = head.config
    if config.width != tower.width:
        raise HeadMismatchError(
            f"the head reads width {config.width}, the tower has {tower.width} ({tower}); "
            "DepthHead.for_host(host) makes one that fits"
        )
    if config.levels[-1] > tower.depth:
        raise HeadMismatchError(
            f"the head reads level {config.levels[-1]}, the tower has levels 0 to {tower.depth} "
            f"({tower}); DepthHead.for_host(host) makes one that fits"
        )
    if config.film and config.context not in tower.contexts:
        raise HeadMismatchError(
            f"the head's FiLM was trained with the {config.context!r} context, this tower has "
            f"{', '.join(map(repr, tower.contexts))} ({tower})"
        )
    check_same_tower(tower, config.provenance.tower_hashes, config.provenance.tower)


def check_pixels(pixel_values: Tensor, tower: Tower) -> None:
    """Whether pixels are laid out as a tower takes them, and finite.

    Raises:
        ImageError: They are not; names the images.
    """
    axes = tower.rule.takes
    fits = pixel_values.ndim == len(axes)
    sizes = zip(axes, pixel_values.shape, strict=False)
    if not fits or any(isinstance(axis, int) and axis != size for axis, size in sizes):
        expected = ", ".join(map(str, axes))
        raise ImageError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected ({expected}), "
            "normalised as the tower takes it"
        )
    odd_B = (~torch.isfinite(pixel_values)).flatten(1).any(dim=1)
    if bool(odd_B.any()):
        raise ImageError(
            f"pixel_values of {axes[0]} {odd_B.nonzero().flatten().tolist()} are not finite (NaN "
            "or infinite)"
        )

"""What is checked before a head meets a tower, and pixels a tower.

Axes: B views, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.identity import check_same_tower
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HeadMismatchError, ImageError
from clipdepth_plugin.head import DepthHead

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in


def check_fit(head: DepthHead | FusedHead, tower: Tower, *, other_tower: bool = False) -> None:
    """Whether a head can read a tower."""
    config = getattr(head, "config", None)
    if not isinstance(head, nn.Module) or not isinstance(config, HeadConfig):
        raise HeadMismatchError(
            f"the head is {_shown(head)}, expected a DepthHead: load_head('demo') of "
            "clipdepth_plugin.shipped, DepthHead.from_pretrained(folder or hub id), or "
            "DepthHead.for_host(host)"
        )
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
    origin = config.provenance
    check_same_tower(tower, origin.tower_hashes, origin.tower, other_tower=other_tower)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else type(value).__name__


def check_laid_out(pixel_values: Tensor, tower: Tower) -> None:
    """Whether pixels are a tensor of floats laid out as a tower takes them."""
    if not isinstance(pixel_values, Tensor):
        raise ImageError(
            f"pixel_values is {type(pixel_values).__name__}, expected a tensor: the pictures as "
            "the host's own image processor makes them"
        )
    if not pixel_values.is_floating_point():
        raise ImageError(
            f"pixel_values is of {pixel_values.dtype}, expected floats, normalised as the tower "
            "takes them: the host's own image processor makes them so"
        )
    axes = tower.rule.takes
    fits = pixel_values.ndim == len(axes)
    sizes = list(zip(axes, pixel_values.shape, strict=False))
    if not fits or any(isinstance(axis, int) and axis != size for axis, size in sizes):
        expected = ", ".join(map(str, axes))
        raise ImageError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected ({expected}), "
            "normalised as the tower takes it"
        )
    patch_h, patch_w = tower.patch_size
    patch = {"H": patch_h, "W": patch_w}
    if any(size < patch.get(str(axis), 0) for axis, size in sizes):
        raise ImageError(
            f"pixel_values has shape {tuple(pixel_values.shape)}: pictures smaller than the "
            f"tower's patches of {patch_h} x {patch_w}; give them at the tower's input size"
        )


def check_pixels(pixel_values: Tensor, tower: Tower) -> None:
    """As ``check_laid_out``, and whether they are finite, which waits for the device.

    The latter not in compiled code and exported graphs, which may not depend on data.
    """
    check_laid_out(pixel_values, tower)
    if torch.compiler.is_compiling():
        return
    odd_B = (~torch.isfinite(pixel_values)).flatten(1).any(dim=1)
    if bool(odd_B.any()):
        refuse_infinite(odd_B.nonzero().flatten().tolist(), tower)


def refuse_infinite(odd: list[int], tower: Tower) -> NoReturn:
    """Says which pixels are not finite."""
    raise ImageError(
        f"pixel_values of {tower.rule.takes[0]} {odd} are not finite (NaN or infinite)"
    )

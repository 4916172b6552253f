"""What a head reads, checked and in its dtype, before its decoder sees it.

Axes: B views, D tower width, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipdepth_plugin.arguments import parse_size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import FeaturesError
from clipdepth_plugin.features import TowerFeatures


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The output's size as a head is given it; a traced one is taken as it is.

    Raises:
        HostError: It is no (height, width) in whole pixels.
    """
    if size is None or torch.compiler.is_compiling():
        return size
    return parse_size(size, "size")


def checked_features(
    features: TowerFeatures, config: HeadConfig, dtype: torch.dtype
) -> TowerFeatures:
    """The levels, the context and the pixels that a head reads, in its dtype.

    Raises:
        FeaturesError: One is missing or has another width.
    """
    read = _checked_levels(features, config.levels, config.width, dtype)
    if config.film and features.context is None:
        raise FeaturesError(
            f"the head's FiLM needs the {config.context!r} context, got None; give "
            "TowerFeatures(context=...) or train a head with film=False"
        )
    if config.reads_pixels and features.pixels is None:
        raise FeaturesError(
            "the head's image stem reads the tower's input pixels, got None; give "
            "TowerFeatures(pixels=...) as the tower takes them"
        )
    context = features.context.to(dtype) if config.film and features.context is not None else None
    if context is not None:
        _check_width("context", context, config.width)
    pixels = features.pixels if config.reads_pixels else None
    if pixels is not None and (pixels.shape[1] != 3 or not pixels.is_floating_point()):
        raise FeaturesError(
            f"pixels are {tuple(pixels.shape)} of {pixels.dtype}; the head's image stem reads "
            "(B, 3, H, W) floats, normalised as the tower takes them"
        )
    return TowerFeatures(read, context, features.grid, None if pixels is None else pixels.to(dtype))


def _checked_levels(
    features: TowerFeatures, levels: tuple[int, ...], width: int, dtype: torch.dtype
) -> dict[int, Tensor]:
    missing = [level for level in levels if level not in features.levels]
    if missing:
        raise FeaturesError(
            f"the head reads levels {list(levels)}; levels {missing} are missing "
            f"(got {sorted(features.levels)})"
        )
    for level in levels:
        _check_width(f"level {level}", features.levels[level], width)
    return {level: features.levels[level].to(dtype) for level in levels}


def _check_width(name: str, x: Tensor, width: int) -> None:
    if x.shape[-1] != width:
        raise FeaturesError(f"{name} has width {x.shape[-1]}; the head was made for {width}")

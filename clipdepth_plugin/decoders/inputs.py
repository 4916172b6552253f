"""What a head reads, checked and in its dtype, before its decoder sees it.

Axes: B views, D tower width, H W a map's size, h w the patch grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipdepth_plugin.arguments import parse_size
from clipdepth_plugin.errors import FeaturesError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head_config import HeadConfig


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """A checked output size; inside torch.compile it is taken as it is."""
    if size is None or torch.compiler.is_compiling():
        return size
    return parse_size(size, "size")


def checked_features(features: TowerFeatures, config: HeadConfig, weight: Tensor) -> TowerFeatures:
    """The levels, the context and the pixels that a head reads, in the dtype of its weights."""
    if not isinstance(features, TowerFeatures):
        raise FeaturesError(
            f"a head reads TowerFeatures, got a {type(features).__name__}; plugin.features(pixels) "
            "gives them, for views of several sizes a list: call the head on each"
        )
    dtype = weight.dtype
    missing = [level for level in config.levels if level not in features.levels]
    if missing:
        raise FeaturesError(
            f"the head reads levels {list(config.levels)}; levels {missing} are missing "
            f"(got {sorted(features.levels)})"
        )
    if config.film and features.context is None:
        raise FeaturesError(
            f"the head's FiLM needs the {config.context!r} context, got None; give "
            "TowerFeatures(context=...) or train a head with film=False"
        )
    levels = {level: features.levels[level] for level in config.levels}
    context = features.context if config.film else None
    for name, x in (*((f"level {k}", x) for k, x in levels.items()), ("context", context)):
        if x is not None and x.shape[-1] != config.width:
            raise FeaturesError(
                f"{name} has width {x.shape[-1]}; the head was made for {config.width}"
            )
        if x is not None and x.device != weight.device:
            raise FeaturesError(
                f"{name} is on {x.device}, the head on {weight.device}: "
                "features.mapped(lambda x: x.to(device)) moves them"
            )
    return TowerFeatures(
        {level: x_BND.to(dtype) for level, x_BND in levels.items()},
        None if context is None else context.to(dtype),
        features.grid,
        _checked_pixels(features.pixels).to(dtype) if config.reads_pixels else None,
    )


def _checked_pixels(pixels: Tensor | None) -> Tensor:
    if pixels is None:
        raise FeaturesError(
            "the head reads the tower's input pixels, got None; give "
            "TowerFeatures(pixels=...) as the tower takes them"
        )
    if pixels.shape[1] != 3:
        raise FeaturesError(
            f"pixels are {tuple(pixels.shape)}; the head reads (B, 3, H, W) floats, "
            "normalised as the tower takes them"
        )
    return pixels

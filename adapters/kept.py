"""Tensors that taps keep until they are read, while the host may still write into them."""

from __future__ import annotations

import torch
from torch import Tensor

from clipdepth_plugin.features import TowerFeatures

Kept = tuple[Tensor, int | None]
"""A tensor as tapped, and its version then, as hosts may write into it later; None where they can't
or where it is a copy."""


def keep(x: Tensor) -> Kept:
    """A reference; a copy where writes could not be noticed (inference mode)."""
    if torch.compiler.is_dynamo_compiling():
        return x.detach(), None
    if x.is_inference():
        return x.clone(), None
    return (x.detach() if x.requires_grad else x), x._version


def written_since(kept: Kept) -> bool:
    """Whether the host has changed the tensor in place since it was kept."""
    x, version = kept
    return version is not None and x._version != version


def usable(features: TowerFeatures) -> TowerFeatures:
    """Features that autograd may save: inference tensors are cloned out."""
    context, pixels = (
        x.clone() if x is not None and x.is_inference() else x
        for x in (features.context, features.pixels)
    )
    levels = {k: x.clone() if x.is_inference() else x for k, x in features.levels.items()}
    return TowerFeatures(levels, context, features.grid, pixels)

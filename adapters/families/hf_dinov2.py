"""Hugging Face Dinov2 towers, with and without registers.

Traits: class token first, then the registers; the pooled vector is the class token after the
final ``layernorm``; any picture size that is a multiple of the patch is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.preprocessing import IMAGENET_NORMALISATION


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if traits.model_type_of(tower) not in ("dinov2", "dinov2_with_registers"):
        return None
    prefix, has_class = traits.count_prefix_tokens(tower, width)
    # A backbone norms every stage it gives out: there is no one pooled vector.
    is_backbone = type(tower).__name__.endswith("Backbone")
    return traits.TowerTraits(
        "hf_dinov2",
        prefix,
        has_class,
        None if is_backbone else traits.PooledTap(tower.layernorm, traits.first_token),
        traits.published(tower, IMAGENET_NORMALISATION),
        traits.image_size_of(tower),
    )

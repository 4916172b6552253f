"""Hugging Face SigLIP vision towers, alone or inside PaliGemma and its kin.

Traits: no prefix tokens; the pooled vector comes from an attention-pooling ``head``, which many
hosts leave out (PaliGemma). SigLIP2's NaFlex towers take flattened patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.naflex import NaflexRule
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION


def read(tower: nn.Module, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    """TowerTraits of the tower, or None if it is of another family."""
    config = getattr(tower, "config", None)
    if not str(getattr(config, "model_type", "")).startswith("siglip"):
        return None
    tower_any: Any = tower
    pools = hasattr(tower_any.head, "probe") if hasattr(tower, "head") else False
    return traits.TowerTraits(
        "hf_siglip",
        num_prefix_tokens=0,
        has_class_token=False,
        pooled=traits.PooledTap(tower_any.head, traits.as_is) if pools else None,
        preprocessing=traits.published(tower, HALF_NORMALISATION),
        image_size=traits.image_size_of(tower),
        rule=_naflex(tower),
    )


def _naflex(tower: nn.Module) -> NaflexRule | None:
    patch = getattr(getattr(tower, "embeddings", None), "patch_size", None)
    told = "spatial_shapes" in traits.parameters_of(tower)
    return NaflexRule((patch, patch)) if told and isinstance(patch, int) else None

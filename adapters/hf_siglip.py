"""Hugging Face SigLIP vision towers, alone or inside PaliGemma and its kin.

Quirks: no prefix tokens; the pooled vector comes from an attention-pooling ``head``, which many
hosts leave out (PaliGemma). SigLIP2's NaFlex towers take flattened patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import quirks as q
from clipdepth_plugin.adapters.naflex import NaflexRule
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION


def read(tower: nn.Module, width: int, ancestors: Sequence[nn.Module]) -> q.Quirks | None:
    """Quirks of the tower, or None if it is of another family."""
    config = getattr(tower, "config", None)
    if not str(getattr(config, "model_type", "")).startswith("siglip"):
        return None
    tower_any: Any = tower
    pools = hasattr(tower_any.head, "probe") if hasattr(tower, "head") else False
    return q.Quirks(
        "hf_siglip",
        num_prefix_tokens=0,
        has_class_token=False,
        pooled=q.PooledTap(tower_any.head, q.as_is) if pools else None,
        preprocessing=q.published(tower, HALF_NORMALISATION),
        image_size=q.image_size_of(tower),
        rule=_naflex(tower),
    )


def _naflex(tower: nn.Module) -> NaflexRule | None:
    patch = getattr(getattr(tower, "embeddings", None), "patch_size", None)
    told = "spatial_shapes" in q.parameters_of(tower)
    return NaflexRule((patch, patch)) if told and isinstance(patch, int) else None

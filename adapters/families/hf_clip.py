"""Hugging Face CLIP vision towers, alone or inside LLaVA and its kin.

Traits: a class token first; the pooled vector is the class token after ``post_layernorm``, which
runs on that token alone, also in hosts that read another hidden state (LLaVA reads -2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.preprocessing import CLIP_NORMALISATION


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if not (hasattr(tower, "pre_layrnorm") and hasattr(tower, "post_layernorm")):
        return None
    norm = tower.post_layernorm  # vLLM leaves it out where no host reads what it gives
    return traits.TowerTraits(
        "hf_clip",
        num_prefix_tokens=1,
        has_class_token=True,
        pooled=traits.PooledTap(norm, traits.first_token) if norm is not None else None,
        preprocessing=traits.published(tower, CLIP_NORMALISATION),
        image_size=traits.image_size_of(tower),
        read_by=traits.LLAVA_KIN,
    )

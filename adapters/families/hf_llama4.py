"""Hugging Face Llama 4 vision towers.

Traits: Unfold and a linear map cut pictures into patches, row-major; the class token is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.clips import ClipRule
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import patch_embeddings


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if traits.model_type_of(tower) != "llama4_vision_model":
        return None
    return traits.TowerTraits(
        "hf_llama4",
        has_class_token=True,
        image_size=traits.image_size_of(tower),
        rule=ClipRule(next(patch_embeddings(tower)).patch_size, after=1, class_token=-1),
        stem=tower.patch_embedding,
    )

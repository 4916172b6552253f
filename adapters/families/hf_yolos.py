"""Hugging Face YOLOS towers.

Traits: a class token first, then the patches, then the detection tokens.
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
    if traits.model_type_of(tower) != "yolos":
        return None
    patch, last = next(patch_embeddings(tower)).patch_size, int(tower.config.num_detection_tokens)
    return traits.TowerTraits(
        "hf_yolos",
        num_prefix_tokens=1,
        has_class_token=True,
        image_size=traits.image_size_of(tower),
        rule=ClipRule(patch, 1, last, class_token=0),
    )

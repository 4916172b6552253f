"""Hugging Face EoMT towers, on DINOv2 and DINOv3, and VideoMT's.

Traits: class token and registers first. Queries join before the last ``num_blocks`` blocks, so
levels end there. VideoMT is given clips, and has each frame in a row of its own until then.
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
    model_type = traits.model_type_of(tower)
    if model_type not in ("eomt", "eomt_dinov3", "videomt") or not hasattr(tower, "query"):
        return None
    without_queries = int(tower.config.num_hidden_layers) - int(tower.config.num_blocks)
    if without_queries < 1:
        return None
    prefix, has_class = traits.count_prefix_tokens(tower, width)
    clips = model_type == "videomt"
    patch_size = next(patch_embeddings(tower)).patch_size
    return traits.TowerTraits(
        "hf_eomt",
        prefix,
        has_class,
        image_size=traits.image_size_of(tower),
        rule=ClipRule(
            patch_size,
            prefix,
            class_token=0 if has_class else None,
            clips=clips,
            tokens="frames apart" if clips else "frames first",
        ),
        patch_blocks=without_queries,
    )

"""open_clip's own vision transformer, and OpenAI's clip package, which has the same layout.

Traits: pooled output is projected afterwards, so it is tapped at ``ln_post``; OpenAI's blocks
(and open_clip's without ``batch_first``) run (N, B, D), which ``towers`` reads off the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.library_configs import from_open_clip
from clipdepth_plugin.adapters.preprocessing import CLIP_NORMALISATION, Preprocessing

_TAKE = {"tok": traits.first_token, "avg": traits.mean_after_first}


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    if not all(hasattr(tower, name) for name in ("conv1", "class_embedding", "ln_post")):
        return None
    prefix, has_class = traits.count_prefix_tokens(tower, width)
    size = image_size(tower)
    take = _TAKE.get(getattr(tower, "pool_type", "tok"))
    pooled = None
    if take is not None and getattr(tower, "attn_pool", None) is None:
        pooled = traits.PooledTap(tower.ln_post, take)
    return traits.TowerTraits(
        "open_clip", prefix, has_class, pooled, host_preprocessing(tower, size), size
    )


def image_size(tower: nn.Module) -> tuple[int, int] | None:
    """open_clip says ``image_size``, OpenAI's package ``input_resolution``."""
    size: Any = getattr(tower, "image_size", None) or getattr(tower, "input_resolution", None)
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def host_preprocessing(tower: nn.Module, size: tuple[int, int] | None) -> Preprocessing | None:
    """What open_clip's factory left on the tower; CLIP's normalisation where it left nothing."""
    config = getattr(tower, "preprocess_cfg", None)
    if config:
        return from_open_clip(config)
    return None if size is None else Preprocessing(*CLIP_NORMALISATION, size)

"""Hugging Face towers of clips: VideoMAE, ViViT, V-JEPA2, VideoPrism, TimeSformer.

Traits: a clip's tokens are one row, tubelet after tubelet; VideoPrism's spatial blocks have a row
for each tubelet, and its temporal blocks, where each patch is a row, are none of the tower's
levels. TimeSformer's patch embedding takes frames; its blocks have the frames of each patch beside
each other, except where attention is in space alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.clips import ClipRule
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import patch_embeddings

_CLIPS = ("videomae", "vivit", "vjepa2", "videoprism_vision_model")


@register
def _read(tower: Any, width: int, ancestors: Sequence[nn.Module]) -> traits.TowerTraits | None:
    # What Conv3d and blocks have in common may be a part of the model, without a config of its own.
    kinds = {traits.model_type_of(one) for one in (*ancestors, tower)}
    found = [one for one in patch_embeddings(tower) if isinstance(one.module, nn.Conv3d)]
    before, has_class = traits.count_prefix_tokens(tower, width)
    class_token = 0 if has_class else None
    if found and kinds & {*_CLIPS}:
        apart = hasattr(tower, "spatial_layers")
        rule = ClipRule(
            found[0].patch_size,
            before,
            class_token=class_token,
            clips=True,
            tokens="frames apart" if apart else "frames first",
        )
    elif traits.model_type_of(tower) == "timesformer":
        if tower.config.attention_type == "space_only":
            return None  # each frame is a picture of its own
        patch = next(iter(patch_embeddings(tower))).patch_size
        frames = int(tower.config.num_frames)
        rule = ClipRule(
            patch, before, 0, class_token, clips=True, tokens="frames last", frames=frames
        )
    else:
        return None
    size = traits.image_size_of(tower)
    return traits.TowerTraits("hf_video", before, has_class, image_size=size, rule=rule)

"""The family files, in the order they are asked; the first that knows a tower answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clipdepth_plugin.adapters.families import (
    hf_clip,
    hf_dinov2,
    hf_mllama,
    hf_pixtral,
    hf_qwen,
    hf_siglip,
    timm_vit,
)
from clipdepth_plugin.adapters.families import open_clip as openclip
from clipdepth_plugin.adapters.traits import TowerTraits, generic

_FAMILIES = (
    openclip.read,
    timm_vit.read,
    hf_clip.read,
    hf_siglip.read,
    hf_dinov2.read,
    hf_qwen.read,
    hf_pixtral.read,
    hf_mllama.read,
)


def read_traits(tower: nn.Module, width: int, ancestors: Sequence[nn.Module]) -> TowerTraits:
    """TowerTraits of a tower.

    Args:
        tower: The module that holds the patch embedding and the blocks.
        width: D.
        ancestors: The modules it lies in, outermost first.
    """
    for read in _FAMILIES:
        if (traits := read(tower, width, ancestors)) is not None:
            return traits
    return generic(tower, width)

"""The family files, in the order they are asked; the first that knows a tower answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clipdepth_plugin.adapters import (
    hf_clip,
    hf_dinov2,
    hf_mllama,
    hf_pixtral,
    hf_qwen,
    hf_siglip,
    openclip,
    timm_vit,
)
from clipdepth_plugin.adapters.quirks import Quirks, generic

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


def read_quirks(tower: nn.Module, width: int, ancestors: Sequence[nn.Module]) -> Quirks:
    """Quirks of a tower.

    Args:
        tower: The module that holds the patch embedding and the blocks.
        width: D.
        ancestors: The modules it lies in, outermost first.
    """
    for read in _FAMILIES:
        if (quirks := read(tower, width, ancestors)) is not None:
            return quirks
    return generic(tower, width)

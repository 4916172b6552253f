"""vLLM's Idefics2 vision tower, inside Idefics3, SmolVLM and their kin.

Traits: a row of patches a picture, cut to ``patch_attention_mask``. The same tower takes
MiniCPM-V's packed patches where it is given ``tgt_sizes``: such a pass is not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from clipdepth_plugin.adapters import traits
from clipdepth_plugin.adapters.families.registry import register
from clipdepth_plugin.adapters.modules import patch_embeddings
from clipdepth_plugin.adapters.plain import PlainRule


@register
def _read(
    tower: nn.Module, width: int, ancestors: Sequence[nn.Module]
) -> traits.TowerTraits | None:
    parameters, embedding = traits.parameters_of(tower), next(patch_embeddings(tower), None)
    if not {"patch_attention_mask", "tgt_sizes"} <= {*parameters} or embedding is None:
        return None
    rule = PlainRule(
        num_prefix_tokens=0,
        sequence_first=False,
        patch_size=embedding.patch_size,
        parameters=parameters,
    )
    return traits.TowerTraits("vllm_idefics2", image_size=traits.image_size_of(tower), rule=rule)

"""Built-in configs of transformers with random weights: hosts to measure, nothing is downloaded.

Latency does not depend on the weights' values. The language models of the multimodal ones have 0.2
to 0.3 G parameters: depth's share of the prefill is larger than beside 7 G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipdepth_plugin.adapters.loading.registry import Library, Loaded, register
from clipdepth_plugin.errors import HostError

if TYPE_CHECKING:
    from torch import nn

_IMAGE_TOKEN = 31_999


def _vit(width: int, mlp: int, blocks: int, heads: int, size: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "image_size": size,
        "patch_size": patch,
    }


_VIT_B_16 = _vit(768, 3072, 12, 12, 224, 16)
_VIT_L_14_336 = _vit(1024, 4096, 24, 16, 336, 14)
_SO400M_14 = _vit(1152, 4304, 27, 16, 224, 14)


def _language(mlp: int, blocks: int, heads: int, key_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 32_000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_size": 1024,
        "intermediate_size": mlp,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }


def _tower(family: str, vision: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{family}VisionConfig")(**vision)
    model: nn.Module = getattr(transformers, f"{family}VisionModel")(config)
    return model


def _llava() -> nn.Module:
    import transformers as hf

    vision = hf.CLIPVisionConfig(**_VIT_B_16)
    text = hf.LlamaConfig(**_language(2752, 16, 16, 16))
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE_TOKEN)
    )


def _paligemma() -> nn.Module:
    import transformers as hf

    return hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(
            vision_config=hf.SiglipVisionConfig(**_VIT_B_16, vision_use_head=False),
            text_config=hf.GemmaConfig(**_language(8192, 9, 8, 1), head_dim=128),
            image_token_index=_IMAGE_TOKEN,
            projection_dim=1024,
        )
    )


BUILT_IN: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "vit-b-16": ("CLIP ViT-B/16 at 224", lambda: _tower("CLIP", _VIT_B_16)),
    "vit-l-14-336": ("CLIP ViT-L/14 at 336", lambda: _tower("CLIP", _VIT_L_14_336)),
    "siglip-b-16": ("SigLIP-B/16 at 224", lambda: _tower("Siglip", _VIT_B_16)),
    "so400m-14": ("SigLIP-So400m/14 at 224", lambda: _tower("Siglip", _SO400M_14)),
    "llava-small": ("LLaVA layout, ViT-B/16 and a Llama of 16 layers, width 1024", _llava),
    "paligemma-small": ("PaliGemma layout, SigLIP-B/16 and a Gemma of 9 layers", _paligemma),
}
"""Name -> label in reports, and how it is built."""


def _load(name: str, random_weights: bool) -> Loaded:
    if name not in BUILT_IN:
        known = ", ".join(f"config:{one}" for one in BUILT_IN)
        raise HostError(f"host 'config:{name}': no such built-in config; there are {known}")
    label, build = BUILT_IN[name]
    return Loaded(build(), label=label)


register("config", Library(_load, "config:NAME (built in, random weights)"))

"""Models of the recipes in docs/distilling.md: published sizes, random weights, own processors.

The language models behind towers are tiny: they never run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_VIT_L: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Made = tuple[Any, Any]
"""Model and image processor."""


def _siglip() -> Made:
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**_SO400M, image_size=384))
    return model, hf.SiglipImageProcessor(size={"height": 384, "width": 384})


def _paligemma() -> Made:
    vision = hf.SiglipVisionConfig(**_SO400M, image_size=224, vision_use_head=False)
    text = hf.GemmaConfig(**_TEXT, head_dim=16)
    config = hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=3, projection_dim=32
    )
    processor = hf.SiglipImageProcessor(size={"height": 224, "width": 224})
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _smolvlm() -> Made:
    vision = hf.SmolVLMVisionConfig(**_SO400M, image_size=384)
    config = hf.SmolVLMConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**_TEXT), image_token_id=3, scale_factor=3
    )
    return hf.SmolVLMForConditionalGeneration(config), hf.SmolVLMImageProcessor()


def _qwen() -> Made:
    config = hf.Qwen2_5_VLConfig(
        vision_config={"hidden_size": 1280, "out_hidden_size": 32},
        text_config={**_TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), hf.Qwen2VLImageProcessor()


def _clip() -> Made:
    model = hf.CLIPVisionModel(
        hf.CLIPVisionConfig(**_VIT_L, intermediate_size=4096, image_size=336, patch_size=14)
    )
    crop = {"height": 336, "width": 336}
    return model, hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=crop)


def _dinov2() -> Made:
    model = hf.Dinov2Model(hf.Dinov2Config(image_size=518, patch_size=14))
    return model, hf.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )


def _depth_anything() -> Made:
    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "out_indices": [3, 6, 9, 12],
        "reshape_hidden_states": False,
    }
    config = hf.DepthAnythingConfig(
        backbone_config=hf.Dinov2Config(**sizes),
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        depth_estimation_type="metric",
        max_depth=20,
    )
    size = {"height": 518, "width": 518}
    processor = hf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14)
    return hf.DepthAnythingForDepthEstimation(config), processor


def _depth_pro() -> Made:
    encoder: dict[str, Any] = {
        "model_type": "dinov2",
        **_VIT_L,
        "image_size": 384,
        "patch_size": 16,
        "use_mask_token": False,
    }
    parts: dict[str, Any] = dict.fromkeys(
        ("image_model_config", "patch_model_config", "fov_model_config"), encoder
    )
    config = hf.DepthProConfig(**parts, use_fov_model=True)
    return hf.DepthProForDepthEstimation(config), hf.DepthProImageProcessor()


TEACHERS: dict[str, tuple[str, Callable[[], Made], int]] = {
    "T1": ("Depth Anything V2 Small, metric", _depth_anything, 4),
    "T2": ("DepthPro", _depth_pro, 1),
}
"""Name -> title, how it is built, pictures labelled."""

TOWERS: tuple[tuple[str, Callable[[], Made], str], ...] = (
    ("SigLIP and SigLIP 2 So400m/14 at 384", _siglip, "T1"),
    ("PaliGemma's So400m/14 at 224", _paligemma, "T2"),
    ("SmolVLM2 2.2B's So400m/14 at 384", _smolvlm, "T1"),
    ("Qwen2.5-VL 3B's", _qwen, "T1"),
    ("CLIP ViT-L/14 at 336", _clip, "T1"),
    ("DINOv2 ViT-B/14 at 224", _dinov2, "T2"),
)
"""Title, how it is built, its recipe's teacher."""

"""Rows of hosts that pack patches and say each picture's grid (``grid_thw``).

Axes: H W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
import transformers
from torch import nn

from clipdepth_plugin.adapters.traits import parameters_of
from tests.tiny.case import IMAGE_TOKEN, PATCH, TEXT, VIDEO_TOKEN, VISION, WIDTH
from tests.tiny.hf_towers import make
from tests.tiny.packed_case import Inputs, PackedCase, library_packing

T: dict[str, Any] = {**TEXT, "num_key_value_heads": 4}
V = {**VISION, "image_size": 48}
_QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}


def _prompt(square: int) -> Callable[[Any, Inputs], dict[str, Any]]:
    def prompt(host: Any, inputs: Inputs) -> dict[str, Any]:
        row = []
        for _, h, w in inputs["image_grid_thw"].tolist():
            row += [92, *[IMAGE_TOKEN] * (h * w // square), 93]
        ids = torch.tensor([[1, *row, 5, 6]])
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}
        if "mm_token_type_ids" in parameters_of(host):
            told["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
        return told

    return prompt


def _ernie() -> nn.Module:
    vision = {
        "depth": 4,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": PATCH,
    }
    text = {**T, "moe_intermediate_size": [16, 16], "moe_num_experts": 2, "moe_k": 1}
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2],
    }  # fmt: skip
    tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
    return make(
        "Ernie4_5_VLMoeForConditionalGeneration", vision_config=vision, text_config=text, **tokens
    )


def _minimax() -> nn.Module:
    text = {
        **T,
        "head_dim": 8,
        "rotary_dim": 4,
        "dense_intermediate_size": 32,
        "shared_intermediate_size": 16,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "index_n_heads": 1,
        "index_head_dim": 8,
        "num_key_value_heads": 1,
    }
    config = transformers.MiniMaxM3VLConfig(
        vision_config={**V, "num_attention_heads": 2},
        text_config=text,
        projector_hidden_size=32,
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
    )
    return transformers.MiniMaxM3SparseForConditionalGeneration(config)


def _paddle() -> nn.Module:
    text: dict[str, Any] = {**T, "head_dim": 8}
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2],
    }  # fmt: skip
    return make(
        "PaddleOCRVLForConditionalGeneration", vision_config=V, text_config=text, **_QWEN_TOKENS
    )


_GRIDS = (
    PackedCase(
        name="ernie4_5_vl_moe",
        title="ERNIE-4.5-VL",
        build=_ernie,
        pack=library_packing(
            "Ernie4_5_VLMoeImageProcessor", do_resize=False, patch_size=PATCH, merge_size=2
        ),
        tower="model.vision_tower",
        family="hf_qwen",
        prompt=_prompt(4),
        channels_first=True,
        needs="Ernie4_5_VLMoeForConditionalGeneration",
    ),
    PackedCase(
        name="minimax_m3_vl",
        title="MiniMax-M3-VL",
        build=_minimax,
        pack=library_packing(
            "MiniMaxM3VLImageProcessor", do_resize=False, patch_size=PATCH, merge_size=2
        ),
        tower="model.vision_tower",
        family="hf_qwen",
        norms=("pre_layrnorm",),
        prompt=_prompt(4),
        needs="MiniMaxM3SparseForConditionalGeneration",
    ),
    PackedCase(
        name="paddleocr_vl",
        title="PaddleOCR-VL",
        build=_paddle,
        pack=library_packing("PaddleOCRVLImageProcessor", do_resize=False, patch_size=PATCH),
        tower="model.visual.vision_model",
        family="hf_qwen",
        prompt=_prompt(4),
        needs="PaddleOCRVLForConditionalGeneration",
        since=(5, 24),  # 5.5 calls its grids image_grid_thw
    ),
)

_KIN: dict[str, Any] = {  # fields that are some config's
    "embed_dim": WIDTH,
    "hidden_size": WIDTH,
    "out_hidden_size": WIDTH,
    "intermediate_size": 48,
    "depth": 4,
    "num_hidden_layers": 4,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": PATCH,
    "image_size": 64,
    "num_patches": 64,
    "spatial_merge_size": 2,
}


def _grid_kin(name: str, title: str, tower: str, processor: str, **case: Any) -> PackedCase:
    """A bare tower of a host that packs as Qwen-VL does; ``tower`` is its class in ``name``."""

    def make_host() -> nn.Module:
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        kind = getattr(module, tower)
        known = {field for base in kind.config_class.__mro__ for field in vars(base)}
        known |= {*kind.config_class.__annotations__}
        config = kind.config_class(**{key: x for key, x in _KIN.items() if key in known})
        return cast("nn.Module", kind(config))

    def see(host: Any, inputs: Inputs) -> Any:
        told = {"merge_sizes": inputs["image_merge_sizes"]} if "image_merge_sizes" in inputs else {}
        return host(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], **told)

    return PackedCase(
        name=name,
        title=title,
        build=make_host,
        pack=library_packing(processor, do_resize=False, patch_size=PATCH, merge_size=2),
        tower="",
        family="hf_qwen",
        see=see,
        needs=processor,
        **{"channels_first": True, **case},
    )


_GRID_KIN = (
    _grid_kin("kimi_k25", "Kimi K2.5", "Kimi_K25VisionModel", "Kimi_K25ImageProcessor"),
    _grid_kin(
        *("hunyuan_vl", "HunYuan-VL", "HunYuanVLVisionTransformer", "HunYuanVLImageProcessor"),
    ),
    _grid_kin("hy_v4_vl", "HunYuan V4-VL", "HYV4VLVisionModel", "HYV4VLImageProcessor"),
    _grid_kin(
        *("cosmos3_edge", "Cosmos3-Edge", "Cosmos3EdgeVisionModel", "Cosmos3EdgeImageProcessor"),
        channels_first=False,
    ),
    _grid_kin(
        *("video_llama_3", "VideoLLaMA 3", "VideoLlama3VisionModel", "VideoLlama3ImageProcessor"),
    ),
    _grid_kin(
        *("cohere_compass", "Cohere Compass", "CohereCompassVisionModel"),
        "CohereCompassImageProcessor",
    ),
    _grid_kin("glm5_next", "GLM-5 Next", "Glm5NextVisionModel", "Glm5NextImageProcessor"),
)

GRIDS: tuple[PackedCase, ...] = (*_GRIDS, *_GRID_KIN)

"""Rows of hosts whose tower takes pictures as Qwen-VL's does: rows of patches in merge order."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.tiny.case import IMAGE_TOKEN, PATCH, TEXT, VIDEO_TOKEN, WIDTH
from tests.tiny.packed_case import Inputs, PackedCase, library_packing

_T = {**TEXT, "num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN_TEXT = {**_T, "rope_parameters": _ROPE, "rope_scaling": _ROPE}
_QWEN_VISION: dict[str, Any] = {
    "depth": 4,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}
_BOTH_TOKENS = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}


def _make(
    model: str, config: str, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    import transformers

    parts = {"vision_config": {**_QWEN_VISION, **vision}, "text_config": text, **options}
    host: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**parts))
    return host


def _qwen(
    name: str,
    model: str,
    vision: dict[str, Any],
    text: dict[str, Any],
    options: dict[str, Any] = _QWEN_TOKENS,
    *,
    config: str = "",
    tower: str = "model.visual",
    title: str = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL (dense and MoE), Qwen3.5",
    **case: Any,
) -> PackedCase:
    config = config or model.replace("ForConditionalGeneration", "Config")
    return PackedCase(
        name=name,
        title=title,
        build=partial(_make, model, config, vision, text, options),
        pack=library_packing(
            *("Qwen2VLImageProcessor",),
            do_resize=False,
            patch_size=PATCH,
            merge_size=2,
            temporal_patch_size=2,
        ),
        tower=tower,
        family="hf_qwen",
        see=lambda host, inputs: host.get_submodule(tower)(
            inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]
        ),
        prompt=_qwen_prompt,
        **{"needs": model, **case},
    )


def _qwen_prompt(host: Any, inputs: Inputs) -> dict[str, Any]:
    row = []
    for _, h, w in inputs["image_grid_thw"].tolist():
        row += [92, *[IMAGE_TOKEN] * (h * w // 4), 93]
    ids = torch.tensor([[1, *row, 5, 6]])
    types = (ids == IMAGE_TOKEN).int()
    told = {"mm_token_type_ids": types} if _takes_token_types(host) else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs, **told}


def _takes_token_types(host: Any) -> bool:
    from clipdepth_plugin.adapters.traits import parameters_of

    return "mm_token_type_ids" in parameters_of(host)


_DEEP: dict[str, Any] = {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 48}
_QWEN3 = {**_DEEP, "deepstack_visual_indexes": [1, 2], "num_position_embeddings": 36}
_EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}
_WINDOWS: dict[str, Any] = {**_DEEP, "window_size": 4 * PATCH, "fullatt_block_indexes": [1, 3]}
# Windows of 4 x 4 patches: ragged ones right and below, and views of one window.
_RAGGED = ((10, 6), (10, 6), (2, 12), (4, 4))
_EIGHT = {**_QWEN_TEXT, "head_dim": 8}
_PARTLY_TURNED = {**_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
_PARTLY: dict[str, Any] = {**_QWEN_TEXT, "rope_parameters": _PARTLY_TURNED}
_LINEAR: dict[str, Any] = {
    **_PARTLY,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
_AUDIO = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "output_dim": WIDTH,
    "num_mel_bins": 8,
    "max_source_positions": 16,
}
_OMNI, _GLM = "Qwen2.5-Omni, Qwen3-Omni, Cosmos3-Omni", "GLM-4V, GLM-4.6V"
_GLM_ROPE = {**_ROPE, "partial_rotary_factor": 1.0}
_GLM_TEXT: dict[str, Any] = {
    **_T,
    "rope_parameters": _GLM_ROPE,
    "rope_scaling": _GLM_ROPE,
}
_GLM_TOKENS = {**_BOTH_TOKENS, "image_start_token_id": 92, "image_end_token_id": 93}
_GLM_VISION = {**_DEEP, "image_size": 48, "model_type": "glm4v_vision"}
_OLD_TOKENS = {
    **_QWEN_TOKENS,
    "image_token_index": IMAGE_TOKEN,
    "video_token_index": VIDEO_TOKEN,
}
QWENS = (
    _qwen(
        *("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        *({"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}, _QWEN_TEXT),
    ),
    _qwen(
        *("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _WINDOWS, _QWEN_TEXT),
        grids=_RAGGED,
    ),
    _qwen("qwen3_vl", "Qwen3VLForConditionalGeneration", _QWEN3, _EIGHT),
    _qwen(
        *("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
        *(_QWEN3, {**_QWEN_TEXT, **_EXPERTS}),
    ),
    _qwen(
        *("qwen3_5", "Qwen3_5ForConditionalGeneration"),
        *({**_DEEP, "num_position_embeddings": 36}, _LINEAR),
    ),
    _qwen(
        *("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration", _WINDOWS, _QWEN_TEXT),
        {**_OLD_TOKENS, "audio_token_index": 94, "audio_config": _AUDIO},
        config="Qwen2_5OmniThinkerConfig",
        needs="Qwen2_5OmniThinkerModel",
        title=_OMNI,
        grids=_RAGGED,
    ),
    _qwen(
        *("qwen3_omni", "Qwen3OmniMoeThinkerForConditionalGeneration"),
        *(_QWEN3, {**_QWEN_TEXT, **_EXPERTS}),
        {
            **_QWEN_TOKENS,
            "audio_token_id": 94,
            "audio_config": {**_AUDIO, "downsample_hidden_size": 8},
        },
        config="Qwen3OmniMoeThinkerConfig",
        needs="Qwen3OmniMoeThinkerModel",
        title=_OMNI,
    ),
    _qwen(
        *("cosmos3_omni", "Cosmos3OmniForConditionalGeneration"),
        {**_QWEN3, "model_type": "qwen3_vl_vision"},
        {**_EIGHT, "model_type": "qwen3_vl_text"},
        title=_OMNI,
    ),
    _qwen(
        *("glm4v", "Glm4vForConditionalGeneration", _GLM_VISION, _GLM_TEXT, _GLM_TOKENS),
        title=_GLM,
        norms=("post_conv_layernorm",),
    ),
    _qwen(
        *("glm46v", "Glm46VForConditionalGeneration", _GLM_VISION),
        *({**_GLM_TEXT, "model_type": "glm4v_text"}, _GLM_TOKENS),
        title=_GLM,
        norms=("post_conv_layernorm",),
    ),
    _qwen(
        *("exaone4_5", "Exaone4_5_ForConditionalGeneration"),
        {**_WINDOWS, "num_key_value_heads": 2},
        {**_T, "model_type": "exaone4", "layer_types": ["full_attention"] * 2},
        _BOTH_TOKENS,
        config="Exaone4_5_Config",
        title="EXAONE 4.5, HyperCLOVAX Vision 2",
        grids=_RAGGED,
    ),
    _qwen(
        *("hyperclovax", "HyperCLOVAXVisionV2ForConditionalGeneration"),
        {**_WINDOWS, "model_type": "qwen2_5_vl_vision"},
        *({**_T, "model_type": "hyperclovax"}, _BOTH_TOKENS),
        tower="model.vision_model",
        title="EXAONE 4.5, HyperCLOVAX Vision 2",
        grids=_RAGGED,
    ),
)

"""Rows of the host table: multimodal models of transformers with prompts or towers of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.tiny.case import (
    DEPTH,
    IMAGE_TOKEN,
    TEXT,
    VIDEO_TOKEN,
    VISION,
    WIDTH,
    HostCase,
    Outputs,
    hidden_states,
    prompt,
)
from tests.tiny.hf_towers import make
from tests.tiny.open_clip_timm import TIMM, timm_levels
from tests.tiny.vlms import Prompts, run, vlm

_T = {**TEXT, "num_key_value_heads": 4}
_LLAMA = {**_T, "model_type": "llama"}
_OPT = {**_T, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32}
_SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
_HEADLESS = {**_SIGLIP, "vision_use_head": False}
_TOKEN, _INDEX = {"image_token_id": IMAGE_TOKEN}, {"image_token_index": IMAGE_TOKEN}
_SIXTEEN, _FOUR = Prompts([[16], [16]]), Prompts([[4], [4]])
_BY_STRUCTURE: dict[str, Any] = {"family": "unknown", "prefix": 0, "contexts": ("mean",)}
_ON_SIGLIP: dict[str, Any] = {
    "tower": "model.vision_model",
    "family": "hf_siglip",
    "prefix": 0,
    "contexts": ("pooled", "mean"),
    "vision": _SIGLIP,
    "title": "DeepSeek-VL, DeepSeek-VL Hybrid",
}

_JANUS_VQ = {
    "embed_dim": 4,
    "num_embeddings": 16,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": (1, 1),
    "num_res_blocks": 1,
    "projection_dim": WIDTH,
    "image_token_embed_dim": WIDTH,
    "num_patches": 4,
}
_SAM = {
    "model_type": "sam_vision_model",
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "output_channels": 16,
    "mlp_dim": 48,
    "window_size": 2,
    "global_attn_indexes": [1],
}
_PE = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_tiny_patch16_384",
    "do_pooling": False,
    "model_args": {**TIMM, "global_pool": "", "ref_feat_shape": (4, 4)},
}
_SIMPLE = (
    vlm(
        *("aria", "AriaForConditionalGeneration"),
        title="Aria",
        tower="model.vision_tower",
        **_BY_STRUCTURE,
        vision={**VISION, "model_type": "idefics3_vision"},
        text={
            **_T,
            "model_type": "aria_text",
            "moe_num_experts": 2,
            "moe_topk": 1,
            "moe_num_shared_experts": 1,
        },
        options={"projector_patch_to_query_dict": {16: 4}, **_INDEX},
        prompts=_FOUR,
    ),
    vlm(
        *("janus", "JanusForConditionalGeneration"),
        title="Janus",
        tower="model.vision_model",
        **_BY_STRUCTURE,
        vision={**VISION, "mlp_ratio": 2, "projection_dim": WIDTH, "num_image_tokens": 16},
        text=_LLAMA,
        options={"vq_config": _JANUS_VQ, **_TOKEN},
        prompts=_SIXTEEN,
    ),
    vlm(
        *("deepseek_vl", "DeepseekVLForConditionalGeneration"),
        **{**_ON_SIGLIP, "text": _LLAMA, "options": _TOKEN, "prompts": _SIXTEEN},
    ),
    replace(
        vlm(
            *("modernvbert", "ModernVBertForMaskedLM"),
            **{**_ON_SIGLIP, "contexts": ("mean",), "vision": _HEADLESS, "title": "ModernVBERT"},
            text={**TEXT, "model_type": "modernbert", "cls_token_id": 1, "sep_token_id": 2},
            options={"pixel_shuffle_factor": 2, **_TOKEN},
            prompts=Prompts([[4, 4]], (1, 2)),
        ),
        inputs=None,
    ),
    replace(
        vlm(
            *("perception_lm", "PerceptionLMForConditionalGeneration"),
            title="PerceptionLM",
            tower="model.vision_tower.timm_model",
            family="timm",
            prefix=1,
            contexts=("cls", "mean"),
            vision=_PE,
            text=_LLAMA,
            options={"video_token_id": VIDEO_TOKEN, **_TOKEN},
            prompts=Prompts([[16, 16]], (1, 2)),
        ),
        levels=lambda host, x: timm_levels(host.model.vision_tower.timm_model, x),
    ),
)

# --- those that take more than a prompt and its pictures -----------------------------------------

MakeInputs = Callable[[Tensor], dict[str, Any]]


def _own(
    name: str, model: str, title: str, options: dict[str, Any], inputs: MakeInputs, **case: Any
) -> HostCase:
    """A row of a model that generates, from its options and its inputs."""
    tower = case["tower"]
    return HostCase(
        name=name,
        title=title,
        build=partial(make, model, **options),
        run=partial(run, inputs),
        levels=lambda host, x: hidden_states(host.get_submodule(tower), x),
        pooled=lambda host, x: cast("Tensor", host.get_submodule(tower)(x).pooler_output),
        inputs=inputs,
        needs=model,
        **case,
    )


def _beside(prompts: Prompts, model: str, more: MakeInputs) -> MakeInputs:
    return lambda x: {**prompts.inputs(model, x), **more(x)}


def _hybrid(x: Tensor) -> dict[str, Any]:
    return {"high_res_pixel_values": nn.functional.interpolate(x, (64, 64))}


def _decoder(x: Tensor) -> dict[str, Any]:
    return {"decoder_input_ids": torch.ones(len(x), 1, dtype=torch.int64)}


def _question(x: Tensor) -> dict[str, Any]:
    ids = torch.tensor([[1, 5, 6]] * len(x))
    return {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def _kosmos(x: Tensor) -> dict[str, Any]:
    inputs = _FOUR.inputs("Kosmos2ForConditionalGeneration", x)
    return {**inputs, "image_embeds_position_mask": inputs["input_ids"] == IMAGE_TOKEN}


def _git(x: Tensor) -> dict[str, Any]:
    return {"pixel_values": x, **prompt(len(x), pictures=False)}


def _git_pooled(host: Any, x: Tensor) -> Tensor:
    """CLIP's vector: the class token after the tower's last norm."""
    return cast("Tensor", host.git.image_encoder(x).last_hidden_state[:, 0])


_CLS: dict[str, Any] = {"prefix": 1, "contexts": ("cls", "mean")}
_CLIP: dict[str, Any] = {"family": "hf_clip", "prefix": 1, "contexts": ("pooled", "cls", "mean")}
_INSTRUCT: dict[str, Any] = {
    "vision_config": {**VISION, "initializer_range": 0.02},
    "qformer_config": {**_T, "encoder_hidden_size": WIDTH},
    "text_config": _OPT,
    "num_query_tokens": 4,
    **_INDEX,
}
_KOSMOS_TEXT = {
    "vocab_size": TEXT["vocab_size"],
    "embed_dim": WIDTH,
    "layers": 2,
    "ffn_dim": 48,
    "attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {**_T, "head_dim": 8}
_OWN = (
    _own(
        *("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration", _ON_SIGLIP["title"]),
        {
            "vision_config": _SIGLIP,
            "text_config": _LLAMA,
            "high_res_vision_config": _SAM,
            **_TOKEN,
        },
        _beside(_SIXTEEN, "DeepseekVLHybridForConditionalGeneration", _hybrid),
        tower="model.vision_model",
        family="hf_siglip",
        prefix=0,
        contexts=("pooled", "mean"),
    ),
    _own(
        *("t5gemma2", "T5Gemma2ForConditionalGeneration", "T5Gemma 2"),
        {
            "encoder": {
                "text_config": _GEMMA,
                "vision_config": _HEADLESS,
                "mm_tokens_per_image": 4,
                **_INDEX,
            },
            "decoder": _GEMMA,
            **_INDEX,
        },
        _beside(_FOUR, "T5Gemma2ForConditionalGeneration", _decoder),
        tower="model.encoder.vision_tower",
        family="hf_siglip",
        prefix=0,
        contexts=("mean",),
    ),
    _own(
        *("instructblip", "InstructBlipForConditionalGeneration", "InstructBLIP", _INSTRUCT),
        _beside(_FOUR, "InstructBlipForConditionalGeneration", _question),
        **{"tower": "vision_model", "family": "unknown", **_CLS},
    ),
    _own(
        *("kosmos2", "Kosmos2ForConditionalGeneration", "Kosmos-2"),
        {"vision_config": VISION, "text_config": _KOSMOS_TEXT, "latent_query_num": 4},
        _kosmos,
        **{"tower": "vision_model.model", **_CLIP},
    ),
    replace(
        _own(
            *("git", "GitForCausalLM", "GIT", {"vision_config": VISION, **TEXT}, _git),
            **{"tower": "git.image_encoder.vision_model", **_CLIP},
        ),
        levels=lambda host, x: hidden_states(host.git.image_encoder, x),
        pooled=_git_pooled,
    ),
)

# --- BridgeTower: heads of 64, tokens before views -----------------------------------------------


def _run_bridgetower(host: Any, x: Tensor) -> Outputs:
    out = host(pixel_values=x, **prompt(len(x), pictures=False))
    return [out.text_features, out.image_features, out.pooler_output]


def _bridgetower_levels(host: Any, x: Tensor) -> list[Tensor]:
    tower = host.vision_model.visual
    states = [tower.forward_pre(x)]
    for block in tower.transformer.resblocks:
        states.append(block(states[-1]))
    return [state.permute(1, 0, 2) for state in states]


_WIDE = {"hidden_size": 2 * WIDTH, "num_attention_heads": 1}
_BRIDGETOWER = HostCase(
    name="bridgetower",
    title="BridgeTower",
    build=partial(
        make,
        "BridgeTowerModel",
        vision_config={**VISION, **_WIDE},
        text_config={**TEXT, **_WIDE, "num_hidden_layers": DEPTH},
        num_hidden_layers=2,
        **_WIDE,
    ),
    tower="vision_model.visual",
    width=2 * WIDTH,
    tower_kwargs={"attention_mask": None},
    run=_run_bridgetower,
    levels=_bridgetower_levels,
    needs="BridgeTowerModel",
    **{"family": "unknown", **_CLS},
)

MORE_VLMS: tuple[HostCase, ...] = (*_SIMPLE, *_OWN, _BRIDGETOWER)

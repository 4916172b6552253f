"""Rows of the host table: multimodal models of transformers, run with a prompt.

Tiles, crops and several pictures in one prompt count as views.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from tests.tiny.case import (
    IMAGE_TOKEN,
    TEXT,
    VIDEO_TOKEN,
    VISION,
    HostCase,
    Outputs,
    hidden_states,
    placeholders,
    tensors,
)
from tests.tiny.hf_towers import make


def build(
    model: str, vision: dict[str, Any], text: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    """A multimodal model from the configs of its two parts."""
    return make(model, vision_config=dict(vision), text_config=dict(text), **options)


def run(inputs: Callable[[Tensor], dict[str, Any]], host: Any, x: Tensor) -> Outputs:
    """The logits of the whole prompt, and the features of the pictures in them."""
    out = host(**inputs(x))
    return [out.logits, *tensors([out.get("image_hidden_states")])]


@dataclass(frozen=True)
class Prompts:
    """What a host's prompts hold.

    Attributes:
        counts: For each prompt, the number of placeholders of each of its pictures or videos.
        shape: Shape of their views before (3, H, W).
        sizes: (H, W) of the pictures, for hosts that tile.
        key: What the host calls the views; the first of these that its forward knows.
        token: The placeholder.
    """

    counts: Sequence[Sequence[int]]
    shape: tuple[int, ...] = (2,)
    sizes: Sequence[Sequence[int]] | None = None
    key: tuple[str, ...] = ("pixel_values",)
    token: int = IMAGE_TOKEN

    def inputs(self, model: str, x: Tensor) -> dict[str, Any]:
        """All inputs of the forward of a class of transformers for such views."""
        known = inspect.signature(getattr(transformers, model).forward).parameters
        key = next(key for key in self.key if key in known)
        pictures = {
            key: x.reshape(*self.shape, *x.shape[1:]),
            **placeholders(self.counts, self.token),
        }
        sizes = {} if self.sizes is None else {"image_sizes": torch.tensor(self.sizes)}
        return {**pictures, **sizes}


def _ovis2_levels(around: Any, x: Tensor) -> list[Tensor]:
    """The module around its tower records all but the last, which comes normed; or none (4.57)."""
    tower = around.transformer
    by_parts = [tower.embeddings(x)]
    for layer in tower.encoder.layers:
        by_parts.append(tensors(layer(by_parts[-1], None))[0])
    recorded = getattr(around(x, output_hidden_states=True), "hidden_states", None)
    return [*(recorded or by_parts)[:-1], by_parts[-1]]


def vlm(
    name: str,
    model: str,
    *,
    title: str,
    tower: str,
    family: str,
    prefix: int,
    contexts: tuple[str, ...],
    vision: dict[str, Any],
    text: dict[str, Any],
    options: dict[str, Any],
    prompts: Prompts,
    choose: str | None = None,
) -> HostCase:
    """A row of a multimodal model; see ``HostCase`` and ``Prompts``."""
    inputs = partial(prompts.inputs, model)
    return HostCase(
        name=name,
        title=title,
        build=partial(build, model, vision, text, options),
        tower=tower,
        family=family,
        prefix=prefix,
        contexts=contexts,
        run=partial(run, inputs),
        levels=lambda host, x: hidden_states(host.get_submodule(tower), x),
        pooled=lambda host, x: cast("Tensor", host.get_submodule(tower)(x).pooler_output),
        inputs=inputs,
        views=torch.Size(prompts.shape).numel(),
        choose=choose,
        needs=model,
    )


_T = {**TEXT, "num_key_value_heads": 4}
_CLIP = {**VISION, "model_type": "clip_vision_model"}
_SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
_HEADLESS = {**_SIGLIP, "vision_use_head": False}
_LLAMA, _QWEN2 = {**_T, "model_type": "llama"}, {**_T, "model_type": "qwen2"}
_IMAGE = {"image_token_index": IMAGE_TOKEN}
_TILED = {**_IMAGE, "image_grid_pinpoints": [[32, 64], [64, 32]]}
_TWO_TILED = Prompts([[52, 56]], (2, 3), [[32, 64], [64, 32]])
_SHUFFLED = {"scale_factor": 2, "image_token_id": IMAGE_TOKEN}
_VIDEO = "VideoLlava, videos of NeXT-Video"
_LLAVA: dict[str, Any] = {
    "tower": "model.vision_tower",
    "family": "hf_clip",
    "prefix": 1,
    "contexts": ("pooled", "cls", "mean"),
    "vision": _CLIP,
    "text": _LLAMA,
    "title": "LLaVA-1.5, LLaVA-NeXT, NeXT-Video, VipLlava",
}
_ON_SIGLIP: dict[str, Any] = {
    "tower": "model.vision_tower",
    "family": "hf_siglip",
    "prefix": 0,
    "contexts": ("pooled", "mean"),
    "vision": _SIGLIP,
    "title": "LLaVA-OneVision, AyaVision",
}
_ON_HEADLESS: dict[str, Any] = {
    **_ON_SIGLIP,
    "contexts": ("mean",),
    "vision": _HEADLESS,
    "title": "PaliGemma, Gemma 3",
}
_IDEFICS: dict[str, Any] = {
    "tower": "model.vision_model",
    "family": "unknown",
    "prefix": 0,
    "contexts": ("mean",),
    "title": "Idefics2, Idefics3, SmolVLM",
}
_PERCEIVER: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "num_key_value_heads": 1,
}
_SIXTEEN, _FOUR = Prompts([[16], [16]]), Prompts([[4], [4]])

VLMS: tuple[HostCase, ...] = (
    vlm("llava", "LlavaForConditionalGeneration", **_LLAVA, options=_IMAGE, prompts=_SIXTEEN),
    vlm(
        *("llava_next", "LlavaNextForConditionalGeneration"),
        **{**_LLAVA, "options": _TILED, "prompts": _TWO_TILED},
    ),
    vlm(
        *("llava_next_video", "LlavaNextVideoForConditionalGeneration"),
        **{**_LLAVA, "prompts": _TWO_TILED},
        options={**_TILED, "video_token_index": VIDEO_TOKEN},
    ),
    vlm(
        *("llava_next_video_frames", "LlavaNextVideoForConditionalGeneration"),
        **{**_LLAVA, "title": _VIDEO, "options": {**_TILED, "video_token_index": VIDEO_TOKEN}},
        prompts=Prompts([[12]], (1, 3), None, ("pixel_values_videos",), VIDEO_TOKEN),
    ),
    *(
        vlm(
            f"video_llava_{kind}",
            "VideoLlavaForConditionalGeneration",
            **{**_LLAVA, "title": _VIDEO, "tower": f"model.{kind}_tower"},
            options={**_IMAGE, "video_token_index": VIDEO_TOKEN},
            prompts=prompt,
            choose=f"model.{kind}_tower",
        )
        for kind, prompt in {
            "image": Prompts([[16], [16]], key=("pixel_values_images", "pixel_values")),
            "video": Prompts([[51]], (1, 3), None, ("pixel_values_videos",), VIDEO_TOKEN),
        }.items()
    ),
    vlm(
        *("vip_llava", "VipLlavaForConditionalGeneration"),
        **_LLAVA,
        options={**_IMAGE, "vision_feature_layers": [-2, -3, 1]},
        prompts=_SIXTEEN,
    ),
    vlm(
        *("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
        **{**_ON_SIGLIP, "text": _QWEN2, "prompts": _TWO_TILED},
        options={**_TILED, "video_token_index": VIDEO_TOKEN},
    ),
    vlm(
        *("aya_vision", "AyaVisionForConditionalGeneration"),
        **{**_ON_SIGLIP, "text": {**_T, "model_type": "cohere2"}, "prompts": _FOUR},
        options=_IMAGE,
    ),
    vlm(
        *("cohere2_vision", "Cohere2VisionForConditionalGeneration"),
        **{**_ON_SIGLIP, "title": "Command A Vision (Cohere2Vision)", "prompts": _FOUR},
        text={**_T, "model_type": "cohere2"},
        options={"image_token_id": IMAGE_TOKEN, "alignment_intermediate_size": 64},
    ),
    vlm(
        *("paligemma", "PaliGemmaForConditionalGeneration"),
        **_ON_HEADLESS,
        text={**TEXT, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8},
        options={**_IMAGE, "projection_dim": 32},
        prompts=_SIXTEEN,
    ),
    vlm(
        *("gemma3", "Gemma3ForConditionalGeneration"),
        **_ON_HEADLESS,
        text={**_T, "model_type": "gemma3_text", "head_dim": 8},
        options={**_IMAGE, "mm_tokens_per_image": 4},
        prompts=_FOUR,
    ),
    vlm(
        *("idefics2", "Idefics2ForConditionalGeneration"),
        **_IDEFICS,
        vision=VISION,
        text={**_T, "model_type": "mistral"},
        options={"perceiver_config": _PERCEIVER, "image_token_id": IMAGE_TOKEN},
        prompts=Prompts([[2, 2]], (1, 2)),
    ),
    vlm(
        *("idefics3", "Idefics3ForConditionalGeneration"),
        **{**_IDEFICS, "options": _SHUFFLED, "prompts": Prompts([[4, 4]], (1, 2))},
        vision=VISION,
        text=_LLAMA,
    ),
    vlm(
        *("smolvlm", "SmolVLMForConditionalGeneration"),
        **{**_IDEFICS, "options": _SHUFFLED, "prompts": Prompts([[4, 4]], (1, 2))},
        vision=VISION,
        text=_LLAMA,
    ),
    vlm(
        *("internvl", "InternVLForConditionalGeneration"),
        title="InternVL",
        tower="model.vision_tower",
        family="unknown",
        prefix=1,
        contexts=("cls", "mean"),
        vision={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text=_QWEN2,
        options={"image_token_id": IMAGE_TOKEN},
        prompts=_FOUR,
    ),
    replace(
        vlm(
            *("ovis2", "Ovis2ForConditionalGeneration"),
            title="Ovis2",
            tower="model.vision_tower.transformer",
            family="unknown",
            prefix=0,
            contexts=("mean",),
            vision={**VISION, "vocab_size": 32, "num_visual_indicator_tokens": 5},
            text=_QWEN2,
            options={
                "hidden_size": 32,
                "vocab_size": TEXT["vocab_size"],
                "image_token_id": IMAGE_TOKEN,
                "visual_indicator_token_ids": [92, 93, 94, 95, 96],
            },
            prompts=_SIXTEEN,
        ),
        levels=lambda host, x: _ovis2_levels(host.model.vision_tower, x),
    ),
    vlm(
        *("blip2", "Blip2ForConditionalGeneration"),
        title="Blip-2",
        tower="vision_model",
        family="unknown",
        prefix=1,
        contexts=("cls", "mean"),
        vision={**VISION, "initializer_range": 0.02},
        text={**_T, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
        options={
            **_IMAGE,
            "num_query_tokens": 4,
            "qformer_config": {**_T, "encoder_hidden_size": 32},
        },
        prompts=_FOUR,
    ),
)
BY_NAME = {case.name: case for case in VLMS}

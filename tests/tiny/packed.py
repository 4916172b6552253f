"""Rows of hosts that pad or pack pictures of several sizes, each with its library's own packing.

Axes: H W pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny.case import IMAGE_TOKEN, PATCH, TEXT, VISION, WIDTH
from tests.tiny.clips import CLIPS
from tests.tiny.grids import GRIDS
from tests.tiny.hf_towers import make
from tests.tiny.packed_case import Inputs, PackedCase, library_packing, prompt_for
from tests.tiny.packed_qwen import QWENS
from tests.tiny.places import PLACES
from tests.tiny.vlms import build

# --- Idefics, SmolVLM ---------------------------------------------------------------------------


def padded(pictures: list[Tensor], side: int = 0) -> Inputs:
    """One prompt's pictures, padded below and at the right as Idefics' processors do."""
    height, width = (max(side, *(x.shape[axis] for x in pictures)) for axis in (1, 2))
    pixels = torch.zeros(1, len(pictures), 3, height, width)
    mask = torch.zeros(1, len(pictures), height, width, dtype=torch.int64)
    for index, x in enumerate(pictures):
        pixels[0, index, :, : x.shape[1], : x.shape[2]] = x
        mask[0, index, : x.shape[1], : x.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


_V = {**VISION, "image_size": 48}
_T = {**TEXT, "num_key_value_heads": 4}
_LLAMA: dict[str, Any] = {**_T, "model_type": "llama"}
_PERCEIVER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "num_key_value_heads": 1,
}
_SHUFFLED = {"scale_factor": 2, "image_token_id": IMAGE_TOKEN}


def _idefics(name: str, model: str, text: Any, options: Any, **case: Any) -> PackedCase:
    return PackedCase(
        name=name,
        title="Idefics2, Idefics3, SmolVLM",
        build=functools.partial(build, model, _V, text, options),
        tower="model.vision_model",
        family="unknown",
        prompt=prompt_for,
        needs=model,
        **case,
    )


# Their pixel shuffle takes squares.
_SQUARES: dict[str, Any] = {
    "pack": functools.partial(padded, side=4 * PATCH),
    "grids": ((4, 4), (4, 2), (2, 4)),
}
_IDEFICS = (
    _idefics(
        *("idefics2", "Idefics2ForConditionalGeneration", {**_T, "model_type": "mistral"}),
        {"perceiver_config": _PERCEIVER, "image_token_id": IMAGE_TOKEN},
        pack=padded,
    ),
    _idefics("idefics3", "Idefics3ForConditionalGeneration", _LLAMA, _SHUFFLED, **_SQUARES),
    _idefics("smolvlm", "SmolVLMForConditionalGeneration", _LLAMA, _SHUFFLED, **_SQUARES),
)

# --- SigLIP2 NaFlex, LFM2-VL --------------------------------------------------------------------

_NAFLEX = {key: value for key, value in VISION.items() if key != "image_size"}
_NAFLEX["num_patches"] = 36
_LFM2: dict[str, Any] = {
    **_T,
    "layer_types": ["conv", "full_attention"],
    "block_multiple_of": 16,
    "conv_L_cache": 3,
}
_PACK_NAFLEX = library_packing(
    "Siglip2ImageProcessor", do_resize=False, patch_size=PATCH, max_num_patches=24
)
_NAFLEXES = (
    PackedCase(
        name="siglip2",
        title="HF Siglip2VisionModel (NaFlex)",
        build=lambda: make("Siglip2VisionModel", **_NAFLEX),
        pack=_PACK_NAFLEX,
        tower="",
        family="hf_siglip",
        contexts=("pooled", "mean"),
        see=lambda host, inputs: host(**inputs),
        pooled=lambda host, inputs: host(**inputs).pooler_output,
        needs="Siglip2VisionModel",
    ),
    PackedCase(
        name="lfm2_vl",
        title="LFM2-VL",
        build=functools.partial(
            build,
            "Lfm2VlForConditionalGeneration",
            {**_NAFLEX, "model_type": "siglip2_vision_model", "vision_use_head": False},
            {**_LFM2, "model_type": "lfm2"},
            {"image_token_id": IMAGE_TOKEN, "downsample_factor": 2, "projector_hidden_size": 32},
        ),
        pack=_PACK_NAFLEX,
        tower="model.vision_tower",
        family="hf_siglip",
        prompt=prompt_for,
        needs="Lfm2VlForConditionalGeneration",
    ),
)

# --- Pixtral, Mistral 3 -------------------------------------------------------------------------

_PACK_PIXTRAL = library_packing("PixtralImageProcessor", do_resize=False, patch_size=PATCH)
_PIXTRALS = (
    PackedCase(
        name="pixtral",
        title="Pixtral, Mistral 3, LightOnOCR",
        build=lambda: make("PixtralVisionModel", **_V),
        pack=_PACK_PIXTRAL,
        tower="",
        family="hf_pixtral",
        norms=("ln_pre",),
        see=lambda host, inputs: host(**inputs),
        needs="PixtralVisionModel",
    ),
    PackedCase(
        name="mistral3",
        title="Pixtral, Mistral 3, LightOnOCR",
        build=functools.partial(
            build,
            "Mistral3ForConditionalGeneration",
            {**_V, "model_type": "pixtral"},
            {**_T, "model_type": "mistral"},
            {"image_token_index": IMAGE_TOKEN, "spatial_merge_size": 2},
        ),
        pack=_PACK_PIXTRAL,
        tower="model.vision_tower",
        family="hf_pixtral",
        norms=("ln_pre",),
        prompt=prompt_for,
        needs="Mistral3ForConditionalGeneration",
    ),
    PackedCase(
        name="lighton_ocr",
        title="Pixtral, Mistral 3, LightOnOCR",
        build=functools.partial(
            build,
            "LightOnOcrForConditionalGeneration",
            {**_V, "model_type": "pixtral"},
            {**_T, "model_type": "qwen3", "head_dim": 8},
            {"image_token_id": IMAGE_TOKEN, "spatial_merge_size": 2},
        ),
        pack=_PACK_PIXTRAL,
        tower="model.vision_encoder",
        family="hf_pixtral",
        norms=("ln_pre",),
        prompt=prompt_for,
        needs="LightOnOcrForConditionalGeneration",
    ),
)

# --- Mllama -------------------------------------------------------------------------------------


def _mllama_prompt(host: Any, inputs: Inputs) -> dict[str, Any]:
    _, images, tiles = inputs["aspect_ratio_mask"].shape
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * images, 5, 6]])
    sees = torch.ones(1, ids.shape[1], images, tiles, dtype=torch.int64)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**text, "cross_attention_mask": sees, **inputs}


def _mllama() -> nn.Module:
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_global_layers": 2,
        "attention_heads": 4,
        "image_size": 4 * PATCH,
        "patch_size": PATCH,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [1, 3],
        "vision_output_dim": 3 * WIDTH,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    text = {**_T, "cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    return make(
        "MllamaForConditionalGeneration",
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
    )


_MLLAMA = PackedCase(
    name="mllama",
    title="Mllama (Llama 3.2 Vision)",
    build=_mllama,
    pack=library_packing(
        "MllamaImageProcessor",
        size={"height": 4 * PATCH, "width": 4 * PATCH},
        max_image_tiles=4,
    ),
    tower="model.vision_model",
    family="hf_mllama",
    contexts=("cls", "mean"),
    depth=6,
    grids=((4, 8), (4, 4), (8, 4)),
    tile=(4, 4),
    norms=("layernorm_pre", "layernorm_post"),
    see=lambda host, inputs: host.model.vision_model(
        **{key: value for key, value in inputs.items() if key != "num_tiles"}
    ),
    prompt=_mllama_prompt,
    needs="MllamaForConditionalGeneration",
)

EVERY_PACKED = (*_IDEFICS, *QWENS, *_NAFLEXES, *_PIXTRALS, _MLLAMA, *CLIPS, *GRIDS, *PLACES)
PACKED = tuple(case for case in EVERY_PACKED if not case.absent)

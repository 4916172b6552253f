"""Rows of hosts that say the place of each patch, or cut pictures in their own way.

Axes: H W pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from einops import rearrange
from torch import Tensor, nn

from tests.tiny.case import IMAGE_TOKEN, PATCH, VIDEO_TOKEN, VISION, WIDTH
from tests.tiny.grids import T, V
from tests.tiny.hf_towers import make
from tests.tiny.packed_case import Inputs, PackedCase, before_5, library_packing, prompt_for
from tests.tiny.stems import radio

# --- RADIO's packed patches ---------------------------------------------------------------------


def _pack_radio(pictures: list[Tensor]) -> Inputs:
    """Patches channel by channel, as its docstring says: the library has no processor of them."""
    patches = [
        rearrange(x, "c (h ph) (w pw) -> (h w) (c ph pw)", ph=PATCH, pw=PATCH) for x in pictures
    ]
    grids = [[x.shape[1] // PATCH, x.shape[2] // PATCH] for x in pictures]
    return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}


_RADIO = PackedCase(
    name="radio_packed",
    title="RADIO",
    build=radio,
    pack=_pack_radio,
    tower="",
    family="hf_radio",
    contexts=("cls", "mean"),
    see=lambda host, inputs: host(**inputs),
    channels_first=True,
    needs="RadioModel",
)

# --- Molmo2's crops -----------------------------------------------------------------------------


def _pack_molmo2(pictures: list[Tensor]) -> Inputs:
    from transformers.models.molmo2.image_processing_molmo2 import batch_pixels_to_patches

    crops_BHWC = torch.stack(pictures).permute(0, 2, 3, 1)
    return {"pixel_values": batch_pixels_to_patches(crops_BHWC, PATCH)}


def _molmo2() -> nn.Module:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {key: VISION[key] for key in keys} | {"patch_size": PATCH, "image_size": [32, 32]}
    config = transformers.Molmo2VisionConfig(**vision, head_dim=8, num_key_value_heads=4)
    return transformers.Molmo2VisionModel(config)


_MOLMO2 = PackedCase(
    name="molmo2",
    title="Molmo2",
    build=_molmo2,
    pack=_pack_molmo2,
    tower="",
    family="hf_molmo2",
    grids=((4, 4), (4, 4), (4, 4)),
    tile=(4, 4),
    see=lambda host, inputs: host(**inputs),
    needs="Molmo2VisionModel",
)

# --- Gemma 4, Pix2Struct, Kosmos-2.5 ------------------------------------------------------------


def _pack_gemma4(pictures: list[Tensor]) -> Inputs:
    """Its tower scales pictures from 0..1 to -1..1: undone, so that it sees them as they are."""
    pack = library_packing(
        *("Gemma4ImageProcessor",),
        do_resize=False,
        patch_size=PATCH,
        max_soft_tokens=70,
        pooling_kernel_size=2,
    )
    packed = pack(pictures)
    return {
        "pixel_values": (packed["pixel_values"] + 1) / 2,
        "image_position_ids": packed["image_position_ids"],
    }


def _gemma4_prompt(host: Any, inputs: Inputs) -> dict[str, Any]:
    told = prompt_for(host, inputs)
    return {**told, "mm_token_type_ids": (told["input_ids"] == IMAGE_TOKEN).int()}


def _gemma4() -> nn.Module:
    vision = {
        **VISION,
        "head_dim": 8,
        "num_key_value_heads": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    del vision["image_size"]
    text = {
        **T,
        "head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 99,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "audio_token_id": 94}
    return make(
        "Gemma4ForConditionalGeneration",
        vision_config=vision,
        text_config=text,
        audio_config=None,
        **tokens,
    )


_EVEN = ((4, 2), (4, 2), (2, 6), (4, 2), (4, 4))
_GEMMA4 = PackedCase(
    name="gemma4",
    title="Gemma 4",
    build=_gemma4,
    pack=_pack_gemma4,
    tower="model.vision_tower",
    family="hf_given_places",
    grids=_EVEN,
    prompt=_gemma4_prompt,
    needs="Gemma4ForConditionalGeneration",
)

# --- MiniCPM-V ----------------------------------------------------------------------------------


def _minicpmv(insert: int, layers: int) -> nn.Module:
    vision = {**V, "num_hidden_layers": layers, "insert_layer_id": insert}
    text = {**T, "model_type": "qwen2"}
    return make(
        "MiniCPMV4_6ForConditionalGeneration",
        vision_config=vision,
        text_config=text,
        insert_layer_id=insert,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
    )


def _pack_minicpmv(pictures: list[Tensor]) -> Inputs:
    strip = transformers.MiniCPMV4_6ImageProcessor().reshape_by_patch
    strips = [strip(x, PATCH) for x in pictures]
    sizes = [[x.shape[1] // PATCH, x.shape[2] // PATCH] for x in pictures]
    return {
        "pixel_values": torch.cat(strips, dim=-1)[None],
        "target_sizes": torch.tensor(sizes, dtype=torch.int32),
    }


_MINICPMV = PackedCase(
    name="minicpmv4_6",
    title="MiniCPM-V 4.6",
    # Two more blocks after the four that give patches.
    build=functools.partial(_minicpmv, 3, 6),
    pack=_pack_minicpmv,
    tower="model.vision_tower",
    family="hf_minicpmv",
    grids=((4, 8), (4, 8), (8, 4), (4, 4)),  # merged twice by 2 x 2
    prompt=prompt_for,
    needs="MiniCPMV4_6ForConditionalGeneration",
)


def _pack_pix2struct(pictures: list[Tensor]) -> Inputs:
    """Row and column, from 1, before each patch; padded by zeros."""
    from transformers.models.pix2struct.image_processing_pix2struct import torch_extract_patches

    batched = [x if before_5() else x[None] for x in pictures]  # what it takes
    longest = max(x.shape[1] * x.shape[2] // PATCH**2 for x in pictures) + 3
    flattened = torch.zeros(len(pictures), longest, 2 + 3 * PATCH**2)
    for index, x in enumerate(batched):
        patches_1hwP = torch_extract_patches(x, PATCH, PATCH)
        _, h, w, _ = patches_1hwP.shape
        y_hw, x_hw = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places_hw2 = torch.stack([y_hw, x_hw], dim=-1) + 1
        flattened[index, : h * w] = torch.cat([places_hw2, patches_1hwP[0]], dim=-1).flatten(0, 1)
    return {"flattened_patches": flattened, "attention_mask": (flattened[..., 0] > 0).float()}


def _pix2struct() -> nn.Module:
    vision = {
        "hidden_size": WIDTH,
        "patch_embed_hidden_size": 3 * PATCH**2,
        "d_ff": 48,
        "d_kv": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "seq_len": 64,
    }
    text = {
        "vocab_size": 99,
        "hidden_size": WIDTH,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    return make(
        "Pix2StructForConditionalGeneration",
        vision_config=vision,
        text_config=text,
        initializer_factor=1.0,
    )


_PIX2STRUCT = PackedCase(
    name="pix2struct",
    title="Pix2Struct",
    build=_pix2struct,
    pack=_pack_pix2struct,
    tower="encoder",
    family="hf_given_places",
    see=lambda host, inputs: host.encoder(**inputs),
    prompt=lambda host, inputs: {**inputs, "decoder_input_ids": torch.zeros(5, 1).long()},
    needs="Pix2StructForConditionalGeneration",
)


def _kosmos2_5() -> nn.Module:
    from transformers.models.kosmos2_5.modeling_kosmos2_5 import Kosmos2_5VisionModel

    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {key: VISION[key] for key in keys} | {"head_dim": 8, "max_num_patches": 64}
    vision |= {"patch_embed_hidden_size": 3 * PATCH**2}
    config: Any = transformers.Kosmos2_5Config(vision_config=vision).vision_config
    return Kosmos2_5VisionModel(config)


_KOSMOS = PackedCase(
    name="kosmos2_5",
    title="Kosmos-2.5",
    build=_kosmos2_5,
    pack=_pack_pix2struct,
    tower="",
    family="hf_given_places",
    see=lambda host, inputs: host(**inputs),
    needs="Kosmos2_5ForConditionalGeneration",
)

PLACES: tuple[PackedCase, ...] = (_RADIO, _MOLMO2, _GEMMA4, _MINICPMV, _PIX2STRUCT, _KOSMOS)

"""Tiny hosts of random weights in folders, with tokenizers and processors, for the real engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

PATCH, WIDTH, DEPTH = 8, 64, 4
WORDS = (
    *("<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>", "<start>", "<end>", "[IMG]"),
    *("[IMG_BREAK]", "[IMG_END]", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "<row_1_col_1>", "<loc>", "\n", "what", "is", "here", "a", "b", "c"),
)
ID = {word: number for number, word in enumerate(WORDS)}
_VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": PATCH,
}
_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": ID["<s>"],
    "eos_token_id": ID["</s>"],
    "pad_token_id": ID["<pad>"],
}
_SQUARE = {"height": 32, "width": 32}


def tokenizer(**more: Any) -> Any:
    """One word, one token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(ID, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), "removed")
    special = [word for word in WORDS if word[0] in "<["]
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=special,
        **{f"{name}_token": word for name, word in names.items()},
        **more,
    )


@dataclass(frozen=True)
class Model:
    """A host.

    Attributes:
        build: (config) of transformers.
        processor: Makes the processor.
        prompt: Of a picture; one for each in a row.
        tower: Path of the tower in vLLM's module; ``family``: its family's file.
        norms: Modules of the tower that would change coordinates.
        tiles: Whether it cuts pictures into tiles.
    """

    name: str
    config: Callable[[], Any]
    processor: Callable[[], Any]
    prompt: str
    tower: str
    family: str
    norms: tuple[str, ...] = ()
    tiles: bool = False

    def save(self, folder: Path) -> Path:
        """Writes its config and processor: the engine makes the weights."""
        self.config().save_pretrained(folder)
        self.processor().save_pretrained(folder)
        return folder

    def save_weights(self, folder: Path) -> Path:
        """Writes transformers' host, of random weights that show what they are given."""
        torch.manual_seed(0)
        config = self.config()
        host = getattr(transformers, config.architectures[0])(config)
        for x in host.parameters():
            if x.ndim > 1:
                nn.init.normal_(x, std=0.1)
        host.save_pretrained(folder)
        return self.save(folder)


def _llava(vision: Any, name: str = "LlavaForConditionalGeneration", **more: Any) -> Any:
    text = transformers.LlamaConfig(**_TEXT)
    fields = {"image_token_index": ID["<image>"], "architectures": [name], **more}
    return transformers.LlavaConfig(vision_config=vision, text_config=text, **fields)


def _clip() -> Any:
    return _llava(transformers.CLIPVisionConfig(**_VISION), vision_feature_layer=-1)


def _siglip_llava() -> Any:
    vision = transformers.SiglipVisionConfig(**_VISION)
    return _llava(vision, vision_feature_layer=-1, vision_feature_select_strategy="full")


def _llava_processor(image: Any, **more: Any) -> Any:
    said = {"patch_size": PATCH, "image_token": "<image>", **more}
    return transformers.LlavaProcessor(image_processor=image, tokenizer=tokenizer(), **said)


def _clip_processor() -> Any:
    image = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SQUARE)
    return _llava_processor(
        image, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _siglip_processor() -> Any:
    image = transformers.SiglipImageProcessor(size=_SQUARE)
    return _llava_processor(
        image, vision_feature_select_strategy="full", num_additional_image_tokens=0
    )


def _pixtral() -> Any:
    vision = transformers.PixtralVisionConfig(**{**_VISION, "image_size": 64, "head_dim": 32})
    return _llava(
        vision,
        image_token_index=ID["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _pixtral_processor() -> Any:
    size: dict[str, Any] = {
        "size": {"longest_edge": 64},
        "patch_size": {"height": PATCH, "width": PATCH},
    }
    image = transformers.PixtralImageProcessor(**size)
    return transformers.PixtralProcessor(image, tokenizer(), patch_size=PATCH)


def _intern() -> Any:
    vision = transformers.InternVLVisionConfig(
        **{**_VISION, "image_size": [32, 32], "patch_size": [PATCH, PATCH]},
    )
    return transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**_TEXT),
        image_token_id=ID["<image>"],
        architectures=["InternVLForConditionalGeneration"],
    )


def _intern_processor() -> Any:
    words = {
        "start_image_token": "<start>",
        "end_image_token": "<end>",
        "context_image_token": "<image>",
        "video_token": "<video>",
    }
    image = transformers.GotOcr2ImageProcessor(
        size=_SQUARE, crop_to_patches=True, max_patches=4, min_patches=1
    )
    video = transformers.InternVLVideoProcessor(size=_SQUARE)
    text = tokenizer(extra_special_tokens=words)
    return transformers.InternVLProcessor(image, text, video, image_seq_length=4)


_QWEN: dict[str, Any] = {
    "vision_start_token_id": ID["<start>"],
    "vision_end_token_id": ID["<end>"],
    "image_token_id": ID["<image>"],
    "video_token_id": ID["<video>"],
}
_ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}


def _qwen25() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "depth": DEPTH,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 32,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1, 3],
    }
    text: dict[str, Any] = {**_TEXT, "rope_parameters": _ROPE, "rope_scaling": _ROPE}
    name = "Qwen2_5_VLForConditionalGeneration"
    kind = transformers.Qwen2_5_VLConfig
    return kind(vision_config=vision, text_config=text, architectures=[name], **_QWEN)


def _qwen3() -> Any:
    vision: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "depth": DEPTH,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [1],
    }
    text: dict[str, Any] = {**_TEXT, "rope_parameters": {**_ROPE, "mrope_interleaved": True}}
    name = "Qwen3VLForConditionalGeneration"
    kind = transformers.Qwen3VLConfig
    return kind(vision_config=vision, text_config=text, architectures=[name], **_QWEN)


def _qwen_processor(kind: str) -> Any:
    words = {
        "image_token": "<image>",
        "video_token": "<video>",
        "vision_start_token": "<start>",
        "vision_end_token": "<end>",
        "vision_bos_token": "<start>",
        "vision_eos_token": "<end>",
    }
    size: dict[str, Any] = {
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        "patch_size": PATCH,
    }
    three = kind == "Qwen3VLProcessor"
    video = transformers.Qwen3VLVideoProcessor if three else transformers.Qwen2VLVideoProcessor
    image = transformers.Qwen2VLImageProcessor(**size)
    text = tokenizer(extra_special_tokens=words)
    return getattr(transformers, kind)(image, text, video(patch_size=PATCH))


def _smolvlm() -> Any:
    return transformers.Idefics3Config(
        vision_config=_VISION,
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_id=ID["<image>"],
        scale_factor=2,
        architectures=["Idefics3ForConditionalGeneration"],
    )


def _smolvlm_processor() -> Any:
    image = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    return transformers.Idefics3Processor(image, tokenizer(), image_seq_len=4)


_PROMPT = "<image> what is here"
_IN_SIGNS = "<start> <image> <end> what is here"
MODELS = (
    Model(
        *("llava_clip", _clip, _clip_processor, _PROMPT, "vision_tower.vision_model", "hf_clip"),
        norms=("pre_layrnorm",),
    ),
    Model(
        *("llava_siglip", _siglip_llava, _siglip_processor, _PROMPT),
        *("vision_tower.vision_model", "hf_siglip"),
    ),
    Model(
        *("pixtral", _pixtral, _pixtral_processor, "[IMG] what is here", "vision_tower"),
        "hf_pixtral",
        norms=("ln_pre",),
    ),
    Model(
        *("internvl", _intern, _intern_processor, _PROMPT, "vision_tower", "unknown"), tiles=True
    ),
    Model(
        *("idefics3", _smolvlm, _smolvlm_processor, _PROMPT, "model.vision_model", "vllm_idefics2")
    ),
    Model(
        "qwen2_5_vl",
        _qwen25,
        lambda: _qwen_processor("Qwen2_5_VLProcessor"),
        *(_IN_SIGNS, "visual", "hf_qwen"),
    ),
    Model(
        "qwen3_vl",
        _qwen3,
        lambda: _qwen_processor("Qwen3VLProcessor"),
        *(_IN_SIGNS, "visual", "hf_qwen"),
    ),
)
BY_NAME = {model.name: model for model in MODELS}


def base_sized() -> Model:
    """A LLaVA with a tower of ViT-B/16's size, to be timed."""
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    sizes |= {"num_attention_heads": 12, "image_size": 224, "patch_size": 16}

    def processor() -> Any:
        size: dict[str, Any] = {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
        }
        made = _clip_processor()
        made.image_processor = transformers.CLIPImageProcessor(**size)
        made.patch_size = 16
        return made

    def config() -> Any:
        return _llava(transformers.CLIPVisionConfig(**sizes), vision_feature_layer=-1)

    return Model("base_sized", config, processor, _PROMPT, "vision_tower.vision_model", "hf_clip")


NOT_BUILT = {
    "GPUs": "no test here runs on one; CUDA's encoder graphs are refused by name",
    "the V2 model runner": "it needs Triton, which the CPU build has not; its hooks were read in "
    "0.32's sources, and not run",
    "pipeline parallel engines": "vLLM's CPU platform fails with them without heads, too; read, "
    "not run: the first stage has the tower, and depth is read there",
    "several engines behind one server (data_parallel_size)": "refused by name",
    "pictures that another engine encodes (ec_transfer_config)": "refused by name",
    "Mistral 3 with mm_device_do_normalize": "refused: patches are embedded past the taps",
    "Llama 4, PaddleOCR-VL, SigLIP2 (NaFlex), MiniCPM-V": "no family file reads vLLM's form",
    "videos": "counted as views by grid_thw, and not run",
}

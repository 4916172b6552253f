"""Which models of transformers the sweep tries, and how it makes a tiny one of any of them.

A model is built from its default config with the fields of ``_SMALL`` made small, by their names,
in the config and in those inside it. ``OVERRIDES`` are those of single classes that need more.
Folders whose models can't be made so, or not be given pictures, have the tiny hosts of the tests.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from tests.tiny.case import HostCase
    from tests.tiny.packed_case import PackedCase

WIDTH, DEPTH, PATCH, SIDE, FRAMES = 32, 4, 8, 4, 4
"""Of the tiny towers: width, blocks, pixels of a patch's side, patches of a picture's side; frames
of a video."""

_MODELS = Path(transformers.__file__).parent / "models"
_SEES = re.compile(r"pixel_values|vision_config|image_size|flattened_patches|image_patches")
_NOT_VISION = re.compile(
    r"(?<!Lite)Text(?!Dual|Net)|Audio(?!Video)|Speech|Decoder(?!Model|Config)|QFormer|Talker"
    r"|Code2Wav|Token2Wav|Vocoder|PreTrainedModelFor"
)
_PARTS = re.compile(r"(Encoder|Head|Adapter|VQVAE|VisionTokenizerModel)$")
_SMALL: tuple[tuple[str, int], ...] = (
    (r"(hidden_size|d_model|embed_dim|embedding_dim|width|dim|n_embd|hidden_dim)", WIDTH),
    (
        r"(out|vision|text|mit|encoder|decoder|output|vision_output|backbone)_hidden_(size|dim)",
        WIDTH,
    ),
    (r"(projection|proj|projector|word_embed_proj|embed)_(dim|size|hidden_size)", WIDTH),
    (r".*(intermediate_size|ffn_dim|feedforward|ffn_hidden_size|mlp_dim|d_ff)", 48),
    (r"(num_hidden_layers|depth|num_layers|n_layers?|.*_layers|.*_num_layers)", DEPTH),
    (r"(num_(attention_)?heads|n_heads?|.*(attention|vision|encoder|decoder)_heads)", 4),
    (r"(num_key_value_heads|num_global_key_value_heads)", 2),
    (r"(global_)?head_dim", 8),
    (r"patch_size", PATCH),
    (r"(image_size|img_size|input_size)", PATCH * SIDE),
    (r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|moe_k|num_experts_per_token)", 2),
    (r"num_frames", FRAMES),
    (r"window_size", PATCH * SIDE),
)
_TWO_HEADS = {"hidden_size": 128, "num_attention_heads": 2}
_ENCODER = {"model_type": "vit"}
_TEXT = {"model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": 1}


def _perception_encoder(path: str, pooling: str) -> dict[str, Any]:
    """A tiny tower of timm's where a config has one at ``path``."""
    arguments = {
        "embed_dim": WIDTH,
        "img_size": (PATCH * SIDE,) * 2,
        "patch_size": PATCH,
        "depth": DEPTH,
        "num_heads": 4,
        "global_pool": pooling,
    }
    named = {"architecture": "vit_pe_core_large_patch14_336", "model_args": arguments}
    return {f"{path}.{key}": value for key, value in named.items()}


OVERRIDES: dict[str, dict[str, Any]] = {
    **{
        f"{name}ForUniversalSegmentation": {"num_blocks": 1, "num_hidden_layers": DEPTH + 1}
        for name in ("Eomt", "EomtDinov3", "Videomt")
    },
    "LwDetrModel": {"backbone_config.image_size": 8 * PATCH * SIDE},
    "BridgeTowerModel": {
        **_TWO_HEADS,
        **{
            f"{part}.{k}": v
            for part in ("text_config", "vision_config")
            for k, v in _TWO_HEADS.items()
        },
    },
    "CohereCompassForConditionalGeneration": {
        "text_config.layer_types": ["sliding_attention"] * DEPTH
    },
    "DepthProModel": {"patch_size": PATCH * SIDE},
    "Granite4VisionForConditionalGeneration": {
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "2/4",
        "vision_config.hidden_size": 64,
    },
    "PerceptionLMModel": _perception_encoder("vision_config", ""),
    "PeVideoModel": _perception_encoder("video_config.vision_config", "map"),
    "PeAudioVideoModel": _perception_encoder(
        "audio_video_config.video_config.vision_config", "map"
    ),
    "Qwen4ExpForConditionalGeneration": {"text_config.layer_types": ["full_attention"] * DEPTH},
    "MllamaForConditionalGeneration": {"vision_config.max_num_tiles": 1},
    "SegGptModel": {"merge_index": 0, "intermediate_hidden_state_indices": [1, 2, 3]},
    "EmbeddingGemma2Model": {"vision_config.pooling_kernel_size": 2},
    "DiffusionGemmaEncoderModel": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 16,
        "vision_config.pooling_kernel_size": 2,
    },
    "Dots3NoteVisionModel": {"pyramid_num_routed": [-1, -1, 4, 4], "adapter_in_dim": WIDTH},
    "NemotronH_Omni_Reasoning_V3": {"vision_config.video_temporal_patch_size": 2},
    "VitMatteForImageMatting": {"fusion_hidden_sizes": [8, 8, 8, 8]},
}
_OCR_BLOCKS = (
    *("reduce_channel", "return_channel"),
    *(
        f"{start}_{length}ratio"
        for start in (
            "vertical_long_to_small_conv",
            "horizontal_small_to_long_conv",
            "symmetric_conv_long",
        )
        for length in ("long", "mid", "short")
    ),
)
_ALONE: dict[str, dict[str, Any]] = {
    "VisionEncoderDecoderModel": {"encoder": _ENCODER, "decoder": {**_TEXT, "is_decoder": True}},
    "VisionTextDualEncoderModel": {"vision_config": _ENCODER, "text_config": _TEXT},
    "TimmBackbone": {"backbone": "resnet18"},
    "EmbeddingGemma2Model": {"vision_config": {"model_type": "gemma4_vision"}},
    "DeepseekOcr2ForConditionalGeneration": {
        "text_config": {"num_hidden_layers": 1, "mlp_layer_types": ["dense"]}
    },
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 4}},
    "Emu3Model": {
        "vocabulary_map": {"<image>": 4, "<|extra_200|>": 5, "<|visual token 000000|>": 6}
    },
    **{
        f"{name}DetModel": {"intraclass_block_config": dict.fromkeys(_OCR_BLOCKS, (1, 1, 0))}
        for name in ("PPOCRV5Server", "PPOCRV6Medium")
    },
}
"""What configs without a default are made of."""


def folders() -> list[str]:
    """The model folders whose code has a vision part."""
    files = sorted(_MODELS.glob("*/modeling_*.py"))
    return sorted({file.parent.name for file in files if _SEES.search(file.read_text("utf-8"))})


def candidates(folder: str) -> list[type[PreTrainedModel]]:
    """A folder's models that may see, one a config class, whole hosts first."""
    best: dict[type, tuple[tuple[int, ...], type[PreTrainedModel]]] = {}
    for file in sorted((_MODELS / folder).glob("modeling_*.py")):
        module = importlib.import_module(f"transformers.models.{folder}.{file.stem}")
        for name, kind in vars(module).items():
            if (
                not (inspect.isclass(kind) and issubclass(kind, PreTrainedModel))
                or kind.__module__ != module.__name__
                or name.endswith("PreTrainedModel")
                or kind.config_class is None
                or _NOT_VISION.search(name)
                or _NOT_VISION.search(kind.config_class.__name__)
            ):
                continue
            rank = _rank(kind)
            if kind.config_class not in best or rank < best[kind.config_class][0]:
                best[kind.config_class] = rank, kind
    kinds = [kind for _, kind in sorted(best.values(), key=lambda one: one[0])]
    # Parts of models, where there is more.
    return [one for one in kinds if not _PARTS.search(one.__name__)] or kinds


def _rank(kind: type[PreTrainedModel]) -> tuple[int, ...]:
    """Less is tried first: whole hosts, then towers, then what needs more than a picture."""
    config: Any = kind.config_class
    whole = any("vision" in name for name in config.sub_configs)
    sees = kind.main_input_name == "pixel_values" or hasattr(kind, "get_image_features")
    named = ("ForConditionalGeneration", "Model", "ForRetrieval", "ForImageClassification")
    ending = next((i for i, name in enumerate(named) if kind.__name__.endswith(name)), len(named))
    return not whole, not sees, bool(_PARTS.search(kind.__name__)), ending


def tiny(kind: type[PreTrainedModel]) -> nn.Module:
    """A tiny random model of a class, in evaluation mode."""
    torch.manual_seed(0)
    config = _small(_default(kind), OVERRIDES.get(kind.__name__, {}))
    model = cast("nn.Module", kind(config).eval())
    for parameter in model.parameters():
        # torch.empty that nothing fills; weights so large that they drown a block's input.
        some = parameter.detach().flatten()[:4096]
        if not bool(some.isfinite().all()) or (parameter.ndim > 1 and some.std() > 0.5):
            nn.init.normal_(parameter, std=0.02)
    return model


def of_the_tests(folder: str) -> HostCase | PackedCase | None:
    """The tests' own tiny host of a folder: a row of their tables that has its name."""
    from tests.tiny.packed import PACKED
    from tests.tiny.table import PRESENT

    cases: list[HostCase | PackedCase] = [*PACKED, *PRESENT]
    return next((case for case in cases if case.name == folder), None)


def default_on_meta(kind: type[PreTrainedModel]) -> nn.Module:
    """The model of a class's default config, without weights: its structure."""
    with torch.device("meta"):
        return kind(_default(kind))


def _default(kind: type[PreTrainedModel]) -> PreTrainedConfig:
    """The default config; vision parts that it leaves out (Gemma 4) are their own default."""
    config: Any = kind.config_class
    made = config(**_ALONE.get(kind.__name__, {}))
    left_out = {
        name: inner()
        for name, inner in config.sub_configs.items()
        if "vision" in name and inner is not AutoConfig and getattr(made, name, inner) is None
    }
    return cast("PreTrainedConfig", config(**left_out) if left_out else made)


def _small(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A small config of the same class; ``overrides`` has "vision_config.depth" and the like."""
    kind = type(config)
    given: dict[str, Any] = {}
    for name in inspect.signature(kind).parameters:
        value = None
        with contextlib.suppress(Exception):  # what differs by layer has no one value (Gemma 4)
            value = getattr(config, name, None)
        if isinstance(value, PreTrainedConfig):
            start = f"{name}."
            inner = {k.removeprefix(start): v for k, v in overrides.items() if k.startswith(start)}
            given[name] = _small(value, inner)
        elif (small := _small_value(name, value, config)) is not None:
            given[name] = small
    given.update({name: value for name, value in overrides.items() if "." not in name})
    return kind(**given)


def _small_value(name: str, value: Any, config: PreTrainedConfig) -> Any:
    """What a field is made; None: as it is by default."""
    if isinstance(value, list | tuple) and value and all(type(one) is int for one in value):
        return _small_list(name, value)
    if type(value) is not int:
        return None
    if name == "num_key_value_heads" and value == getattr(config, "num_attention_heads", None):
        return 4
    if name.endswith("feature_layer"):
        return value if -DEPTH <= value <= DEPTH else -1
    return next((small for pattern, small in _SMALL if re.fullmatch(pattern, name)), None)


def _small_list(name: str, value: list[int] | tuple[int, ...]) -> Any:
    if name in ("patch_size", "image_size", "img_size"):
        return type(value)((PATCH if name == "patch_size" else PATCH * SIDE,) * len(value))
    if name == "tubelet_size":
        return type(value)((2, PATCH, PATCH))
    if re.search(r"ind(ex|ices|exes)|feature_layers?$", name):
        levels = [min(one, i) if one >= 0 else max(one, -3) for i, one in enumerate(value)]
        return levels[:DEPTH]
    return None

"""LeRobot's policies with Qwen's towers, all pictures in one pass: EO1, VLA-JEPA, GR00T, Wall-X."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.lerobot.policies import ACTION, STATE, STEPS, TEXT, features

_WORDS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "start": "<|vision_start|>",
    "end": "<|vision_end|>",
}
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def qwen_processor(folder: Path, kind: str, more: tuple[str, ...] = ()) -> Any:
    """A processor of Qwen's, saved: a few words, its own image processor."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", *_WORDS.values(), *more]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        extra_special_tokens={
            "image_token": _WORDS["image"],
            "video_token": _WORDS["video"],
            "vision_bos_token": _WORDS["start"],
            "vision_eos_token": _WORDS["end"],
            **{f"{word}_token": word for word in more},
        },
    )
    patch, size = (14, 28) if kind == "Qwen2_5_VLProcessor" else (16, 32)
    pixels: dict[str, Any] = {"patch_size": patch, "min_pixels": size**2, "max_pixels": 9 * size**2}
    pixels["size"] = {"shortest_edge": size**2, "longest_edge": 9 * size**2}
    three: Any = kind == "Qwen3VLProcessor"
    video = transformers.Qwen3VLVideoProcessor() if three else transformers.Qwen2VLVideoProcessor()
    processor = getattr(transformers, kind)(
        transformers.Qwen2VLImageProcessor(**pixels), tokenizer, video, chat_template=_TEMPLATE
    )
    processor.save_pretrained(folder)
    return processor


_QWEN_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "depth": 4,
    "num_heads": 2,
    "out_hidden_size": 32,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_IDS: dict[str, Any] = {
    "image_token_id": 2,
    "video_token_id": 3,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
}


def eo1(folder: Path, **more: Any) -> Any:
    from lerobot.policies.eo1.configuration_eo1 import EO1Config
    from lerobot.policies.eo1.modeling_eo1 import EO1Policy
    from transformers import Qwen2_5_VLConfig

    qwen_processor(folder, "Qwen2_5_VLProcessor")
    vlm = Qwen2_5_VLConfig(
        vision_config={**_QWEN_VISION, "window_size": 28, "fullatt_block_indexes": [1, 3]},
        text_config={**TEXT, "rope_parameters": _ROPE},
        **_IDS,
    )
    options: dict[str, Any] = {
        **features(),
        "vlm_base": str(folder),
        "vlm_config": vlm.to_dict(),
        "pretrained_path": str(folder),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "num_denoise_steps": 2,
        "dtype": "float32",
        "attn_implementation": "sdpa",
    }
    return EO1Policy(EO1Config(**{**options, **more}))


def eo1_preprocessor(policy: Any) -> Any:
    """The package's own pipeline: the conversation, then Qwen's processor."""
    from lerobot.policies.eo1.processor_eo1 import make_eo1_pre_post_processors

    config = policy.config
    config.image_min_pixels, config.image_max_pixels = 28 * 28, 9 * 28 * 28
    return make_eo1_pre_post_processors(config)[0]


def _qwen3(folder: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    qwen_processor(folder, "Qwen3VLProcessor")
    vision = {**_QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    text = {**TEXT, "rope_parameters": {**_ROPE, "mrope_interleaved": True}}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **_IDS)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def vla_jepa(folder: Path, **more: Any) -> Any:
    from lerobot.policies.vla_jepa.configuration_vla_jepa import VLAJEPAConfig
    from lerobot.policies.vla_jepa.modeling_vla_jepa import VLAJEPAPolicy

    options: dict[str, Any] = {
        **features(),
        "qwen_model_name": str(_qwen3(folder)),
        "enable_world_model": False,
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "action_dim": ACTION,
        "state_dim": STATE,
        "action_hidden_size": 32,
        "action_num_layers": 2,
        "torch_dtype": "float32",
        "action_num_heads": 2,
        "action_attention_head_dim": 16,
        "num_inference_timesteps": 2,
        "gripper_dim": 0,
        "num_embodied_action_tokens_per_instruction": 2,
    }
    return VLAJEPAPolicy(VLAJEPAConfig(**{**options, **more}))


def groot(folder: Path, **more: Any) -> Any:
    """GR00T N1.7, whose weights are saved here as its own loader wants them."""
    from lerobot.policies.groot.configuration_groot import GrootConfig
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
    from lerobot.policies.groot.modeling_groot import GrootPolicy

    base = folder / "GR00T-N1.7-tiny"
    small = {
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_layers": 2,
        "dropout": 0.0,
        "final_dropout": True,
        "positional_embeddings": None,
    }
    config = GR00TN17Config(
        model_name=str(_qwen3(folder / "Qwen3-VL")),
        backbone_model_type="qwen",
        select_layer=2,
        load_bf16=False,
        use_flash_attention=False,
        backbone_embedding_dim=32,
        hidden_size=16,
        input_embedding_dim=16,
        action_horizon=STEPS,
        max_state_dim=8,
        max_action_dim=8,
        diffusion_model_cfg={
            **small,
            "output_dim": 16,
            "norm_type": "ada_norm",
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={**small, "attention_head_dim": 16},
        num_inference_timesteps=2,
        model_dtype="float32",
    )
    GR00TN17(config, load_backbone_weights=False).save_pretrained(base)
    options: dict[str, Any] = {
        **features(),
        "base_model_path": str(base),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "use_flash_attention": False,
    }
    return GrootPolicy(GrootConfig(**{**options, **more}))


def groot_preprocessor(policy: Any) -> Any:
    """The package's own pipeline, with the tiny backbone's processor."""
    from lerobot.policies.groot.processor_groot import make_groot_pre_post_processors

    ends = {"min": torch.full((8,), -3.0), "max": torch.full((8,), 3.0)}
    stats = {
        "observation.state": {name: end[:STATE] for name, end in ends.items()},
        "action": {name: end[:ACTION] for name, end in ends.items()},
    }
    pipeline = make_groot_pre_post_processors(policy.config, stats)[0]
    for step in pipeline.steps:
        if hasattr(step, "model_name"):
            step.model_name = policy._groot_model.config.model_name
    return pipeline


def wall_x(folder: Path, **more: Any) -> Any:
    from lerobot.policies.wall_x.configuration_wall_x import WallXConfig
    from lerobot.policies.wall_x.modeling_wall_x import WallXPolicy
    from lerobot.policies.wall_x.qwen_model.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from safetensors.torch import save_file

    qwen_processor(folder, "Qwen2_5_VLProcessor", more=("<|action|>", "<|propri|>"))
    joints: Any = {"dof_config": {"arm": 8}, "agent_pos_config": {"arm": 8}}
    experts: Any = {"num_experts": 2, "dim_inputs": (32, 32), "mlp_moe": True}
    expert = {"hidden_size": 32, "intermediate_size": 48, "hidden_act": "silu"}
    config = Qwen2_5_VLConfig(
        vision_config={**_QWEN_VISION, "window_size": 28, "fullatt_block_indexes": [1, 3]},
        text_config={
            **TEXT,
            "rope_parameters": _ROPE,
            **experts,
            "experts": [expert, expert],
            "dof_config": joints["dof_config"],
        },
        **_IDS,
        **joints,
    )
    config.save_pretrained(folder)
    save_file({"unused": torch.zeros(1)}, folder / "model.safetensors")
    options: dict[str, Any] = {
        **features(),
        "pretrained_name_or_path": str(folder),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "max_state_dim": 8,
        "max_action_dim": 8,
    }
    return WallXPolicy(WallXConfig(**{**options, **more}))

"""LeRobot's policies that are built otherwise than pi0, or have no ViT tower."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.lerobot.policies import (
    ACTION,
    KEYS,
    STATE,
    STEPS,
    TEXT,
    VISION,
    batch_of,
    features,
    paligemma,
    pi_options,
)

SQUARE = {"front": (48, 48), "wrist": (48, 48), "side": (48, 48)}
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


def square_batch(rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """As ``batch_of``, all cameras of one size."""
    batch = batch_of(rows, seed)
    for key in KEYS:
        batch[key] = torch.nn.functional.interpolate(batch[key], (48, 48))
    return batch


# --- pi0-FAST: its tokenizers are downloaded, so its actions here are the tokens ---


def pi0_fast(_: Path, **more: Any) -> Any:
    from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig

    config = PI0FastConfig(**pi_options(max_decoding_steps=4, **more))
    words = SimpleNamespace(bos_token_id=2, convert_tokens_to_ids=lambda _: 7, vocab_size=300)
    loader = SimpleNamespace(from_pretrained=lambda *_, **__: words)
    module = "lerobot.policies.pi0_fast.modeling_pi0_fast"
    policy = paligemma(module, "PI0FastPolicy", config, AutoProcessor=loader, AutoTokenizer=loader)
    policy.detokenize_actions = _as_they_are
    return policy


def _as_they_are(tokens: Tensor, **_: Any) -> Tensor:
    return tokens.float()


def fast_batch(rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """With the action tokens that the training forward takes."""
    tokens = torch.randint(3, 90, (rows, STEPS), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return {**batch_of(rows, seed), "action.tokens": tokens, "action.token_mask": mask}


# --- multi-task DiT: one pass for all cameras, rows by cameras ---


def multi_task_dit(folder: Path, **more: Any) -> Any:
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    vision, text = folder / "clip-vision", folder / "clip-text"
    CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=48)).save_pretrained(vision)
    short = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "vocab_size")}
    heads: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 2}
    CLIPTextModel(CLIPTextConfig(**short, **heads)).save_pretrained(text)
    options: dict[str, Any] = {
        **features(SQUARE),
        "vision_encoder_name": str(vision),
        "text_encoder_name": str(text),
        "image_crop_shape": None,
        "hidden_dim": 32,
        "num_layers": 1,
        "num_heads": 2,
        "horizon": STEPS,
        "n_action_steps": 2,
        "n_obs_steps": 1,
        "num_train_timesteps": 4,
    }
    return MultiTaskDiTPolicy(MultiTaskDiTConfig(**{**options, **more}))


# --- EO1, VLA-JEPA, GR00T N1.7: Qwen's towers, pictures packed in one pass ---


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
    """The package's own pipeline, with the tiny backbone's processor in place of the one it names."""
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


# --- EVO1: InternVL's tower, rows by cameras in one pass; absent ones are filled in ---


def evo1(folder: Path, **more: Any) -> Any:
    from lerobot.policies.evo1.configuration_evo1 import Evo1Config
    from lerobot.policies.evo1.modeling_evo1 import Evo1Policy
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import InternVLConfig, InternVLModel, PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<IMG_CONTEXT>", "<img>", "</img>"]
    ids = {word: number for number, word in enumerate(special)}
    made = Tokenizer(models.WordLevel(ids, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        additional_special_tokens=special[2:],
    ).save_pretrained(folder)
    vision = {**VISION, "image_size": [64, 64], "patch_size": [8, 8]}
    config = InternVLConfig(
        vision_config=vision,
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=2,
        image_seq_length=16,
    )
    InternVLModel(config).save_pretrained(folder)
    options: dict[str, Any] = {
        **features(),
        "vlm_model_name": str(folder),
        "vlm_num_layers": 2,
        "vlm_dtype": "float32",
        "use_flash_attn": False,
        "image_resolution": (64, 64),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "embed_dim": 32,
        "hidden_dim": 32,
        "state_hidden_dim": 16,
        "num_heads": 2,
        "num_layers": 1,
        "num_inference_timesteps": 2,
        "training_stage": "stage2",
    }
    return Evo1Policy(Evo1Config(**{**options, **more}))


# --- Wall-X: its own copy of Qwen2.5-VL's tower ---


def wall_x(folder: Path, **more: Any) -> Any:
    from lerobot.policies.wall_x.configuration_wall_x import WallXConfig
    from lerobot.policies.wall_x.modeling_wall_x import Qwen2_5_VLMoEForAction, WallXPolicy
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


# --- no ViT tower: refused ---


def _of(name: str, config: str, policy: str, **options: Any) -> Any:
    modeling = importlib.import_module(f"lerobot.policies.{name}.modeling_{name}")
    configuration = importlib.import_module(f"lerobot.policies.{name}.configuration_{name}")
    return getattr(modeling, policy)(getattr(configuration, config)(**options))


def act(_: Path) -> Any:
    return _of("act", "ACTConfig", "ACTPolicy", **features(), pretrained_backbone_weights=None)


def diffusion(_: Path) -> Any:
    options = {"pretrained_backbone_weights": None, "crop_shape": None}
    return _of("diffusion", "DiffusionConfig", "DiffusionPolicy", **features(SQUARE), **options)


def vqbet(_: Path) -> Any:
    options = {"pretrained_backbone_weights": None, "crop_shape": None}
    one = features({"front": (48, 48)})
    return _of("vqbet", "VQBeTConfig", "VQBeTPolicy", **one, **options)


def tdmpc(_: Path) -> Any:
    return _of("tdmpc", "TDMPCConfig", "TDMPCPolicy", **features({"front": (64, 64)}))


def xvla(_: Path) -> Any:
    vision: dict[str, Any] = {
        "embed_dim": [16, 16, 16, 16],
        "num_heads": [2] * 4,
        "num_groups": [2] * 4,
    }
    vision |= {"depths": [1, 1, 1, 1], "projection_dim": 32}
    text = {"d_model": 32, "vocab_size": 99, "encoder_layers": 1, "decoder_layers": 1}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    florence = {"vision_config": vision, "text_config": text}
    small = {"hidden_size": 32, "depth": 1, "num_heads": 2, "florence_config": florence}
    return _of("xvla", "XVLAConfig", "XVLAPolicy", **features(), **small)


REFUSED = {"act": act, "diffusion": diffusion, "vqbet": vqbet, "tdmpc": tdmpc, "xvla": xvla}

"""LeRobot's policies that are built otherwise than pi0: pi0-FAST, multi-task DiT, EVO1."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.lerobot.policies import (
    KEYS,
    STEPS,
    TEXT,
    VISION,
    batch_of,
    features,
    paligemma,
    pi_options,
)

SQUARE = {"front": (48, 48), "wrist": (48, 48), "side": (48, 48)}


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

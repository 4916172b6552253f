"""LeRobot's own policies, from its own classes: tiny layers, random weights, nothing downloaded.

Where a policy fixes a size in its code (pi0's vocabulary, its tower's width), its config is shrunk
on the way to the model; what a policy loads by a name comes from a folder made here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import Tensor, nn

CAMERAS = {"front": (48, 96), "wrist": (60, 40), "side": (70, 70)}
KEYS = tuple(f"observation.images.{name}" for name in CAMERAS)
STATE, ACTION, STEPS, WORDS = 5, 4, 6, 7
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 99,
}


def features(cameras: dict[str, tuple[int, int]] | None = None) -> dict[str, Any]:
    """What all policies are told of the robot."""
    shown = CAMERAS if cameras is None else cameras
    visual = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size))
        for name, size in shown.items()
    }
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    actions = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
    return {"input_features": {**visual, **state}, "output_features": actions, "device": "cpu"}


def batch_of(rows: int = 2, seed: int = 0, keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """What a policy is given: smooth pictures, 0 to 1, each of its own."""
    noise = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {}
    for key in keys:
        height, width = CAMERAS[key.rpartition(".")[2]]
        coarse = torch.rand(rows, 3, 4, 4, generator=noise)
        batch[key] = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    words = torch.randint(3, 90, (rows, WORDS), generator=noise)
    batch["observation.language.tokens"] = words
    batch["observation.language.attention_mask"] = torch.ones_like(words, dtype=torch.bool)
    batch["observation.state"] = torch.randn(rows, STATE, generator=noise)
    batch["action"] = torch.randn(rows, STEPS, ACTION, generator=noise)
    batch["task"] = ["pick up the cube"] * rows
    return batch


def actions_of(policy: Any, batch: dict[str, Any], seed: int = 3) -> Tensor:
    """A chunk of actions, from the same noise each time."""
    torch.manual_seed(seed)
    given = {key: value for key, value in batch.items() if key != "action"}
    chunk: Tensor = policy.predict_action_chunk(given)
    return chunk


def loss_of(policy: Any, batch: dict[str, Any], seed: int = 3) -> Tensor:
    """The training forward, from the same noise each time."""
    torch.manual_seed(seed)
    loss: Tensor = policy.forward(dict(batch))[0]
    return loss


# --- SmolVLA ---


def smolvlm_folder(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> Path:
    """A SmolVLM's config and processor, as the policy loads them by name."""
    from tokenizers import Tokenizer, models
    from transformers import (
        LlamaConfig,
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        "video_token": "<video>",
    }
    words = ["<unk>", "<pad>", *special.values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>")),
        unk_token="<unk>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        extra_special_tokens=special,
    )
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), chat_template="{{ '' }}"
    ).save_pretrained(folder)
    SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**vision).to_dict(),
        text_config=LlamaConfig(**text).to_dict(),
        image_token_id=2,
        scale_factor=2,
    ).save_pretrained(folder)
    return folder


def smolvla(folder: Path, **more: Any) -> Any:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    smolvlm_folder(folder, {**VISION, "image_size": 64}, TEXT)
    options: dict[str, Any] = {
        **features(),
        "vlm_model_name": str(folder),
        "resize_imgs_with_padding": (64, 64),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "num_steps": 2,
        "num_vlm_layers": 2,
        "max_state_dim": 8,
        "max_action_dim": 8,
    }
    return SmolVLAPolicy(SmolVLAConfig(**{**options, **more}))


# --- pi0, pi0.5, pi0-FAST ---


def _shrunk(make: Any, tower: dict[str, Any], config: Any) -> Any:
    """A PaliGemma, or its expert, of a config whose fixed sizes are made small."""
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        vision.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size, config.image_token_index = 300, 299
        for name, value in tower.items():
            setattr(vision, name, value)
    else:
        config.vocab_size = 300
    return make(config=config)


def paligemma(
    module: str,
    name: str,
    config: Any,
    *,
    vision: dict[str, Any] = VISION,
    width: int = 32,
    **patches: Any,
) -> Any:
    """A policy of LeRobot's that is built on PaliGemma; ``vision``: its tower's sizes."""
    import importlib

    modeling: Any = importlib.import_module(module)
    size = modeling.GemmaConfig(
        width=width, depth=2, mlp_dim=48, num_heads=8, num_kv_heads=1, head_dim=8
    )
    made = ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
    tower = {**vision, "image_size": config.image_resolution[0]}
    small = {
        "get_gemma_config": lambda _: size,
        **{
            one: partial(_shrunk, getattr(modeling, one), tower)
            for one in made
            if hasattr(modeling, one)
        },
        **patches,
    }
    with mock.patch.multiple(modeling, **small):
        return getattr(modeling, name)(config)


def pi_options(**more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        **features(),
        "chunk_size": STEPS,
        "n_action_steps": 1,
        "image_resolution": (64, 64),
        "max_state_dim": 8,
        "max_action_dim": 8,
    }
    return {**options, **more}


def pi0(_: Path, *, vision: dict[str, Any] = VISION, width: int = 32, **more: Any) -> Any:
    from lerobot.policies.pi0.configuration_pi0 import PI0Config

    config = PI0Config(**pi_options(**{"num_inference_steps": 2, **more}))
    module = "lerobot.policies.pi0.modeling_pi0"
    return paligemma(module, "PI0Policy", config, vision=vision, width=width)


def pi05(_: Path, **more: Any) -> Any:
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    config = PI05Config(**pi_options(num_inference_steps=2, **more))
    return paligemma("lerobot.policies.pi05.modeling_pi05", "PI05Policy", config)

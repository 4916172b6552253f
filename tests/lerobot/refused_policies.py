"""LeRobot's policies that have no ViT tower."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tests.lerobot.more_policies import SQUARE
from tests.lerobot.policies import features


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


def gaussian_actor(_: Path) -> Any:
    """Its pictures go through four convolutions."""
    module = "gaussian_actor"
    return _of(module, "GaussianActorConfig", "GaussianActorPolicy", **features(SQUARE))


def lingbot_va(_: Path) -> Any:
    """Its transformer takes what Wan's VAE, of convolutions, makes of the pictures."""
    small = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4}
    small |= {"out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4}
    return _of("lingbot_va", "LingBotVAConfig", "LingBotVAPolicy", **features(SQUARE), **small)


REFUSED = {
    "act": act,
    "diffusion": diffusion,
    "vqbet": vqbet,
    "tdmpc": tdmpc,
    "xvla": xvla,
    "gaussian_actor": gaussian_actor,
    "lingbot_va": lingbot_va,
}

"""Depth of each camera beside a robot policy's actions.

    python examples/04_depth_beside_a_policy.py

PI0 folds its cameras into the batch of one tower pass, then takes some denoising steps with what
that saw. The one here is tiny and random, so that nothing is downloaded (transformers 5.5 on);
yours is attached to alike. Policies that call their tower once a camera (LeRobot's) are read with
``with plugin.capture() as seen:``, one pass for each camera.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PI0Config,
    PI0ForConditionalGeneration,
    SiglipVisionConfig,
)

from clipdepth_plugin import DepthHead, attach

IMAGE_TOKEN, PATCHES, CAMERAS, STEPS, ACTIONS = 90, 16, 3, 8, 6
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def tiny_pi0() -> PI0ForConditionalGeneration:
    """A PI0 of 4 vision blocks, on pictures of 32 x 32 from several cameras."""
    language = GemmaConfig(
        **SMALL, num_hidden_layers=2, num_key_value_heads=1, head_dim=16, vocab_size=99
    )
    vision = SiglipVisionConfig(
        **SMALL, num_hidden_layers=4, image_size=32, patch_size=8, vision_use_head=False
    )
    vlm = PaliGemmaConfig(
        vision_config=vision, text_config=language, image_token_index=IMAGE_TOKEN, projection_dim=64
    )
    config = PI0Config(
        vlm_config=vlm,
        dit_config=language,
        chunk_size=STEPS,
        max_state_dim=ACTIONS,
        max_action_dim=ACTIONS,
    )
    policy: PI0ForConditionalGeneration = PI0ForConditionalGeneration(config).eval()
    return policy


def main() -> None:
    """Asks for actions with and without the head, and compares."""
    torch.manual_seed(0)
    policy = tiny_pi0()
    head = DepthHead.for_host(policy, preset="fast", context="mean").eval()
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * (PATCHES * CAMERAS), 5, 6, 7]])
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "state": torch.randn(1, ACTIONS),
        "noise": torch.randn(1, STEPS, ACTIONS),
        "pixel_values": torch.randn(1, CAMERAS, 3, 32, 32),
        "pixel_attention_mask": torch.ones(1, CAMERAS, dtype=torch.bool),
    }
    alone = policy.sample_actions(**inputs, num_steps=4)
    with attach(policy, head) as plugin:
        beside = policy.sample_actions(**inputs, num_steps=4)
        metres = plugin.depth  # (cameras, 1, 32, 32), in their order
    print(f"The same {STEPS} actions: {torch.equal(alone, beside)}")
    for camera, map_1HW in enumerate(metres):
        print(f"Camera {camera}: {map_1HW.min():.2f} to {map_1HW.max():.2f} m")


if __name__ == "__main__":
    main()

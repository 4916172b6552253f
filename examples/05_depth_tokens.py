"""Depth tokens in a VLM: a few steps of fine-tuning with everything else frozen.

    python examples/05_depth_tokens.py

The SmolVLM here is tiny and random, so that nothing is downloaded; yours is attached to alike. It
learns to answer one word to one picture and another word to another. Depth tokens are added to what
its connector makes of the tower's patches, each with its point in space, through a projection that
starts at zero.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from clipdepth_plugin import DepthHead, DepthTokens, attach

IMAGE_TOKEN, TOKENS = 90, 4
CAMERA = (30.0, 30.0, 15.5, 15.5)  # fx, fy, cx, cy in pixels of the tower's input
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def tiny_smolvlm() -> SmolVLMForConditionalGeneration:
    """A SmolVLM of 4 vision blocks, on pictures of 32 x 32: 4 x 4 patches, 2 x 2 tokens."""
    config = SmolVLMConfig(
        vision_config={**SMALL, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        text_config={
            **SMALL,
            "model_type": "llama",
            "num_hidden_layers": 2,
            "vocab_size": 99,
            "pad_token_id": 0,
        },
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    model: SmolVLMForConditionalGeneration = SmolVLMForConditionalGeneration(config).eval()
    return model


def main() -> None:
    """Trains depth tokens alone, saves them, loads them and takes them off."""
    torch.manual_seed(0)
    host = tiny_smolvlm().requires_grad_(requires_grad=False)
    head = DepthHead.for_host(host, preset="fast", context="mean").eval()
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * TOKENS, 5, 6]] * 2)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 1, 3, 32, 32),
    }
    answers = torch.tensor([7, 8])
    alone = host(**inputs).logits

    with attach(host, head) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, intrinsics=CAMERA)
        print(f"The same at first: {torch.equal(host(**inputs).logits, alone)}")
        first, second = plugin.tokens("host", intrinsics=CAMERA)  # of each picture
        print(f"Visual tokens, and depth, confidence, x, y, z of each: {tuple(first.shape)}")
        print(f"Mean depth: {first[:, 0].mean():.2f} m, {second[:, 0].mean():.2f} m")

        optimiser = torch.optim.AdamW(tokens.train().parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            logits = host(**inputs).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        print(f"Loss {losses[0]:.2f} -> {losses[-1]:.2f}")
        print(f"Gradients in the host: {any(p.grad is not None for p in host.parameters())}")
        with torch.no_grad():
            trained = host(**inputs).logits
        tokens.detach()
        print(f"The same when detached: {torch.equal(host(**inputs).logits, alone)}")

        with tempfile.TemporaryDirectory() as folder:
            tokens.save_pretrained(folder)  # config.json and model.safetensors, nothing of the host
            loaded = DepthTokens.from_pretrained(folder)
        with loaded.attach(plugin, intrinsics=CAMERA), torch.no_grad():
            print(f"The same when loaded: {torch.equal(host(**inputs).logits, trained)}")


if __name__ == "__main__":
    main()

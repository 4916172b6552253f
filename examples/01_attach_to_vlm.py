"""Use 1: depth beside a multimodal model that generates text from a picture.

    python examples/01_attach_to_vlm.py

The LLaVA here is tiny and random, so that nothing is downloaded; yours is attached to alike:
LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf"), and a trained head by
DepthHead.from_pretrained.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from clipdepth_plugin import DepthHead, attach

IMAGE_TOKEN, PATCHES = 90, 16
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def tiny_llava() -> LlavaForConditionalGeneration:
    """A LLaVA of 4 vision blocks and 2 language blocks, on pictures of 32 x 32."""
    vision = CLIPVisionConfig(**SMALL, num_hidden_layers=4, image_size=32, patch_size=8)
    text = LlamaConfig(**SMALL, num_hidden_layers=2, vocab_size=99, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config).eval()
    return model


def main() -> None:
    """Generates with and without the head, and compares."""
    torch.manual_seed(0)
    host = tiny_llava()
    head = DepthHead.for_host(host, preset="fast").eval()
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * PATCHES, 5, 6, 7]])  # a processor makes these
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    alone = host.generate(**inputs, max_new_tokens=8, do_sample=False)
    with attach(host, head) as plugin:
        beside = host.generate(**inputs, max_new_tokens=8, do_sample=False)
        metres = plugin.depth  # of the tower pass that generate() made
    print(f"The same text: {torch.equal(alone, beside)}")
    print(f"Depth {tuple(metres.shape)}, {metres.min():.2f} to {metres.max():.2f} m")


if __name__ == "__main__":
    main()

"""Use 2: tower and head as one torch module, pixels in and metres out; the head is trained.

    python examples/02_torch_module.py

The tower is tiny and random, so that nothing is downloaded. `clipdepth train` does all this, and
augmentation, validation, resuming and caching too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, DepthPlugin


def main() -> None:
    """Fits a head to one made-up scene."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    config = CLIPVisionConfig(**small, num_hidden_layers=4, image_size=32, patch_size=8)
    tower = CLIPVisionModel(config).eval()
    plugin = DepthPlugin(tower, DepthHead.for_host(tower, preset="fast"))
    # Its parameters are the head's alone: no gradient reaches the tower.
    optimiser = torch.optim.AdamW(plugin.parameters(), lr=3e-3)
    pixels = torch.randn(4, 3, 32, 32)
    truth = torch.linspace(1.0, 4.0, 32)[:, None].expand(4, 1, 32, 32)  # a floor, in metres
    losses = []
    for _ in range(30):
        metres = plugin(pixels)  # (4, 1, 32, 32)
        loss = (metres.log() - truth.log()).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    print(f"Mean error of log depth: {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"Gradients in the tower: {any(p.grad is not None for p in tower.parameters())}")


if __name__ == "__main__":
    main()

"""What a user would do without the plug-in: a second network for depth on the same picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SEPARATE = "Depth-Anything-V2-S"


def depth_anything_v2_small() -> nn.Module:
    """Depth Anything V2, small (arXiv 2406.09414), metric, with random weights: 24.8 M parameters.

    The config is that of ``depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf``.
    """
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
    )

    options: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "out_indices": [3, 6, 9, 12],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    backbone = Dinov2Config(**options)
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
        depth_estimation_type="metric",
        max_depth=20,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = DepthAnythingForDepthEstimation(config)
    return model.eval()


def separate_call(
    model: nn.Module, batch: int, size: int, like: torch.Tensor
) -> Callable[[], object]:
    """One pass of a separate model on ``batch`` square pictures of ``size``.

    The picture's own resizing is not counted, as it is not for the host.

    Args:
        model: From ``depth_anything_v2_small``.
        batch: B.
        size: Pixels on a side.
        like: Whose device and dtype the pictures have.
    """
    pixels_B3HW = torch.randn(batch, 3, size, size).to(like)
    return lambda: model(pixel_values=pixels_B3HW)

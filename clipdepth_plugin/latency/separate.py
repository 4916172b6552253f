"""The alternative to the plug-in: a separate network for depth on the same picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NAME = "Depth-Anything-V2-S"
PATCH = 14
"""Picture sizes are multiples of it."""


def depth_anything_v2_small() -> nn.Module:
    """Depth Anything V2, small (arXiv 2406.09414), with random weights: 24.8 M parameters.

    transformers' default config is that of this size.
    """
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = DepthAnythingForDepthEstimation(DepthAnythingConfig())
    return model.eval()


def separate_passes(sizes: Iterable[int], like_B3HW: Tensor) -> dict[str, Callable[[], object]]:
    """Name -> a pass of the separate network, for each size; resizing is not counted.

    Args:
        sizes: Pixels on a side of the square pictures.
        like_B3HW: Whose batch, device and dtype they have.
    """
    sizes = tuple(sizes)
    if not sizes:
        return {}
    network = depth_anything_v2_small().to(like_B3HW)

    def pass_of(size: int) -> Callable[[], object]:
        pixels_B3HW = torch.randn(len(like_B3HW), 3, size, size).to(like_B3HW)
        return lambda: network(pixel_values=pixels_B3HW)

    return {f"{NAME} at {size}": pass_of(size) for size in sizes}

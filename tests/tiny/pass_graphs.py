"""A small tower, heads and pictures for tests of CUDA graphs, and what stands in for the GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.fused.head import FusedHead


def small_tower() -> nn.Module:
    """CLIP's, of 16 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "image_size": 64}
    config = CLIPVisionConfig(**sizes, num_attention_heads=2, patch_size=16)
    made: nn.Module = CLIPVisionModel(config).eval()
    return made


def fused_head(tower: nn.Module, preset: str = "fast", **options: Any) -> FusedHead:
    """A small head for it."""
    torch.manual_seed(0)
    small = {"channels": (16, 12, 8), "film_hidden": 8, **options}
    return DepthHead.for_host(tower, preset, **small).eval().fused()


def pictures(batch: int, side: int = 64) -> torch.Tensor:
    """Random ones, the same for each number of them."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


class Event:
    """Stands in for a CUDA event, with as many calls; which streams it is on or waited for by."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def record(self, stream: Any) -> None:
        self.seen.append(stream)

    def synchronize(self) -> None:
        self.seen.append("synchronize")


def seems_a_gpu(monkeypatch: pytest.MonkeyPatch, stream: Callable[..., int]) -> None:
    """All tensors say that they are on a GPU; ``stream``: the current one's number.

    What asks CUDA is a call here, too: a builtin in the place of each of torch's own.
    """
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    for where in (torch._C, torch.cuda.graphs):
        monkeypatch.setattr(where, "_cuda_isCurrentStreamCapturing", sys.is_finalizing)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Mock(number=stream(device)))
    monkeypatch.setattr(torch.cuda, "Event", Event)

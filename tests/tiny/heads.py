"""Small heads for the tiny hosts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clipdepth_plugin import DepthHead, HeadConfig


def small_head(host: nn.Module, **options: Any) -> DepthHead:
    """A small head that fits a host, random but not dead, in evaluation mode."""
    torch.manual_seed(3)
    defaults: dict[str, Any] = {"channels": (16, 8, 8, 8), "film_hidden": 16, "activation": "log"}
    return DepthHead.for_host(host, **{**defaults, **options}).eval()


def with_config(head: DepthHead, **changes: Any) -> DepthHead:
    """A new head of the same config but for ``changes``."""
    return DepthHead(HeadConfig(**{**head.config.model_dump(), **changes})).eval()

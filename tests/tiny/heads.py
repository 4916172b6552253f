"""Small heads for the tiny hosts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clipdepth_plugin import DepthHead, HeadConfig
from clipdepth_plugin.settings import STORED


def small_head(host: nn.Module, **options: Any) -> DepthHead:
    """A small head that fits a host, random but not dead, in evaluation mode."""
    torch.manual_seed(3)
    defaults: dict[str, Any] = {"channels": (16, 8, 8, 8), "activation": "log"}
    if options.get("film", True):
        defaults["film_hidden"] = 16
    return DepthHead.for_host(host, **{**defaults, **options}).eval()


def with_config(head: DepthHead, **changes: Any) -> DepthHead:
    """A new head of the same config but for ``changes``."""
    return DepthHead(
        HeadConfig.model_validate({**head.config.model_dump(), **changes}, context=STORED)
    ).eval()

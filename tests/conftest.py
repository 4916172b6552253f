"""Fixtures that several files share: hosts of the table in tests/tiny, and heads that fit them.

Hosts are built from config with fixed seeds; nothing is downloaded.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it: no test may download

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from tests.tiny.case import HostCase, pixels, prompt
from tests.tiny.table import BY_NAME, PRESENT


@pytest.fixture(params=PRESENT, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> HostCase:
    """Every host in turn."""
    return cast("HostCase", request.param)


@pytest.fixture
def make_host() -> Callable[[str], nn.Module]:
    """A host by its name in the table."""
    return lambda name: BY_NAME[name].host()


@pytest.fixture
def make_pixels() -> Callable[..., Tensor]:
    """(B, 3, H, W) pixels from a seed."""
    return pixels


@pytest.fixture
def make_prompt() -> Callable[..., dict[str, Tensor]]:
    """Inputs of a VLM without its pixels."""
    return prompt


def small_head(host: nn.Module, **options: Any) -> DepthHead:
    """A small head that fits a host, random but not dead, in evaluation mode."""
    torch.manual_seed(3)
    defaults: dict[str, Any] = {"channels": (16, 8, 8, 8), "film_hidden": 16, "activation": "log"}
    return DepthHead.for_host(host, **{**defaults, **options}).eval()


@pytest.fixture
def make_head() -> Callable[..., DepthHead]:
    """See ``small_head``."""
    return small_head

"""Fixtures that several files share: hosts of the table in tests/tiny, and heads that fit them.

Hosts are built from config with fixed seeds; nothing is downloaded.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it: no test may download
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch reads it: these processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from typing import cast

import pytest
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from tests.tiny.case import HostCase, pixels, prompt
from tests.tiny.heads import small_head
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


@pytest.fixture
def make_head() -> Callable[..., DepthHead]:
    """See ``small_head``."""
    return small_head


@pytest.fixture
def host() -> nn.Module:
    """A tower with a class token and a pooled vector that takes pictures of any size."""
    return BY_NAME["dinov2"].host()


@pytest.fixture
def head(host: nn.Module) -> DepthHead:
    """A small head that fits ``host``."""
    return small_head(host)

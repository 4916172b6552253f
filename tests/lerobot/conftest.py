"""Tests of LeRobot's own package: `make test-lerobot`, in an environment of its own.

LeRobot needs other versions of torch and transformers than the suite. Where it is not installed
these files are not collected at all, so that they are no skipped tests.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthHead, TowerFeatures
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate

if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob = ["*"]

# A dependency of LeRobot's (draccus) installs a package `tests`: ours is to be found first.
_ours = str(Path(__file__).parents[1])
if "tests" in sys.modules and _ours not in (paths := sys.modules["tests"].__path__):
    sys.modules["tests"].__path__ = [_ours, *paths]


class RedHead(DepthHead):
    """Gives 1 m and the pixels' red, so that a map shows which picture it is of, and where."""

    @property
    def reads_pixels(self) -> bool:
        return True

    def estimate(
        self, features: TowerFeatures, size: Size | None = None, **_: Any
    ) -> DepthEstimate:
        """Metres of the pixels alone."""
        assert features.pixels is not None
        return DepthEstimate(2 + features.pixels[:, :1].float(), None)


@pytest.fixture
def red_head() -> Callable[[nn.Module], RedHead]:
    """A ``RedHead`` that fits a policy."""

    def make(policy: nn.Module) -> RedHead:
        config = DepthHead.for_host(policy, "fast", context="mean").config
        return RedHead(HeadConfig(**config.model_dump(exclude_unset=True))).eval()

    return make


@pytest.fixture
def small_head() -> Callable[[nn.Module], DepthHead]:
    """A real head, of random weights."""

    def make(policy: nn.Module) -> DepthHead:
        torch.manual_seed(1)
        return DepthHead.for_host(policy, "fast", context="mean").eval()

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` caches, and LeRobot's videos on their way, stay in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three episodes."""
    from tests.lerobot.sets import make_set

    return make_set(tmp_path_factory.mktemp("set") / "src", (4, 6, 5))

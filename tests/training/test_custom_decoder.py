"""A decoder of a user's own: registered in one place, then trained, saved and attached."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures, attach
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.config import DECODERS, PRESETS
from clipdepth_plugin.decoders.decoder import Decoder, register_decoder
from clipdepth_plugin.decoders.pathways import tokens_to_map
from clipdepth_plugin.decoders.readout import DepthActivation, DepthEstimate, read_estimate
from clipdepth_plugin.errors import ConfigError, HeadFileError, KernelError
from clipdepth_plugin.fused import forms
from clipdepth_plugin.fused.forms import Packing, fused_form
from clipdepth_plugin.training.engine import train
from tests.training.conftest import TinyRuns


class OneLevel(Decoder):
    """The logits of one level's tokens, by a 1x1 convolution."""

    @classmethod
    def check(cls, config: HeadConfig) -> None:
        if len(config.levels) != 1:
            raise ValueError(f"semantic_levels: one-level reads one, got {config.levels}")

    @classmethod
    def upsampling(cls, config: HeadConfig) -> int:
        return 1

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.level = config.levels[0]
        self.activation = DepthActivation(config.activation, config.depth_range)
        self.to_logit = nn.Conv2d(config.width, self.activation.channels, 1)

    def forward(
        self,
        features: TowerFeatures,
        size: tuple[int, int] | None,
        *,
        auxiliary: bool = False,
    ) -> DepthEstimate:
        map_BDhw = tokens_to_map(features.levels[self.level], features.grid)
        return read_estimate(self.activation, self.to_logit(F.normalize(map_BDhw, dim=1)), size)


class Fused(nn.Module):
    """The decoder as it is: there is nothing to fold."""

    def __init__(self, decoder: OneLevel, packing: Packing) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(decoder).to(packing.dtype)

    def forward(self, features: TowerFeatures, size: tuple[int, int] | None) -> DepthEstimate:
        estimate: DepthEstimate = self.decoder(features, size)
        return estimate


@pytest.fixture
def _one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "one-level", OneLevel)  # is removed after the test
    preset: dict[str, Any] = {"decoder": "one-level", "semantic_levels": (12,), "structural": False}
    preset |= {"film": False, "activation": "log", "auxiliary": 0}
    monkeypatch.setitem(PRESETS, "one-level", preset)


@pytest.mark.usefixtures("_one_level")
def test_it_trains_saves_loads_and_attaches(
    tiny: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(
        "run",
        head={"preset": "one-level"},
        loss={"auxiliary": []},
        steps=24,
        optimiser={"lr": 0.05},
    )
    saved = train(config).head
    losses = list(tiny.losses("run").values())
    assert sum(losses[-3:]) < sum(losses[:3])
    head = DepthHead.from_pretrained(saved)
    assert head.config.levels == (2,), "of the tower's two blocks"
    host = load_host(tiny.host).model
    with attach(host, head) as plugin:
        host(torch.zeros(1, 3, 28, 28))
        assert plugin.depth.shape == (1, 1, 28, 28)
    with pytest.raises(KernelError, match=r"a OneLevel has no fused form, only .*DualPath"):
        head.fused()
    monkeypatch.setattr(forms, "_FORMS", {})
    fused_form(OneLevel)(Fused)
    features = TowerFeatures({2: torch.randn(1, 6, 16)}, None, (2, 3))
    with torch.no_grad():
        torch.testing.assert_close(head.fused()(features), head(features))
    monkeypatch.delitem(DECODERS, "one-level")
    with pytest.raises(HeadFileError, match="no decoder is called 'one-level'"):
        DepthHead.from_pretrained(saved)


@pytest.mark.usefixtures("_one_level")
def test_its_own_check_is_a_configs() -> None:
    with pytest.raises(ValidationError, match="one-level reads one"):
        HeadConfig(width=8, preset="one-level", semantic_levels=(1, 2))


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="'compact' is registered already"):
        register_decoder("compact")(OneLevel)
    with pytest.raises(ValidationError, match=r"there are .*compact"):
        HeadConfig(width=8, decoder="nosuch")

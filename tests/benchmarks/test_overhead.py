"""Python calls that a plug-in adds, as cProfile counts them: the same on every machine.

They must not grow with the host. What they cost in time, `test_hooks.py` says.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach

ATTACHED_PASS = 250
"""Calls of a tower pass and of reading its depth, beside the tower's own and the head's own."""
WHOLE_CALL = 2_900
"""Calls of ``plugin(pixels)``; a CLIP tower of 12 blocks makes 1,900 of them."""
PUTTING_HOOKS_ON = 120
"""More of them where the plug-in is detached."""


def calls(run: Callable[[], object]) -> int:
    """Python calls of one run; what is only done at first has been done before."""
    run()
    profile = cProfile.Profile()
    profile.enable()
    run()
    profile.disable()
    return int(vars(pstats.Stats(profile))["total_calls"])


@pytest.fixture(params=[0, 2_000], ids=["tower alone", "2,000 modules more"])
def host(request: pytest.FixtureRequest) -> nn.Module:
    """A host that calls its tower and has so many modules beside it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    tower: nn.Module = CLIPVisionModel(CLIPVisionConfig(**sizes, num_attention_heads=4))
    if request.param:
        tower.add_module("more", nn.ModuleList(nn.Identity() for _ in range(request.param)))
    return tower.eval()


@torch.no_grad()
def test_python_calls_of_a_pass(host: nn.Module, report: Callable[[str], None]) -> None:
    pixels_B3HW = torch.zeros(1, 3, 224, 224)
    head = DepthHead.for_host(host, preset="fast").eval()
    alone = calls(lambda: host(pixels_B3HW))
    with attach(host, head) as plugin, plugin.capture() as seen:

        def read() -> Tensor:
            host(pixels_B3HW)
            return plugin.depth

        attached = calls(read)
        host(pixels_B3HW)
        features = seen[-1].features
        whole = calls(lambda: plugin(pixels_B3HW))
    head_alone = calls(lambda: head(features))
    detached = calls(lambda: plugin(pixels_B3HW))
    added = attached - alone - head_alone
    report(f"Python calls: tower {alone}, head {head_alone}, added by an attached pass {added}")
    report(f"Python calls of plugin(pixels): attached {whole}, detached {detached}")
    assert added <= ATTACHED_PASS
    assert whole <= WHOLE_CALL
    assert detached <= WHOLE_CALL + PUTTING_HOOKS_ON

"""DepthTokens in LeRobot's own policies: the same actions at first, trained, and taken off."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthHead, DepthTokens, attach

pytest.importorskip("lerobot")
cases: Any = importlib.import_module("tests.lerobot.cases")
plain: Any = importlib.import_module("tests.lerobot.policies")
SIZES = [plain.CAMERAS[key.rpartition(".")[2]] for key in plain.KEYS]
FOCALS = [80.0, 90.0, 100.0]
Heads = Callable[[nn.Module], DepthHead]


@pytest.mark.parametrize("name", ["smolvla", "pi0", "pi05", "pi0_fast"])
def test_actions_are_the_same_at_first(name: str, tmp_path: Path, small_head: Heads) -> None:
    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    batch = case.batch(policy)
    alone = case.act(policy, batch)
    with attach(policy, small_head(policy)) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin, focal_px=80.0)
        assert torch.equal(case.act(policy, batch), alone)
        nn.init.normal_(tokens.project.weight, std=0.5)
        assert not torch.equal(case.act(policy, batch), alone) or name == "pi0_fast"
        tokens.detach()
        assert torch.equal(case.act(policy, batch), alone)


@pytest.mark.parametrize("name", ["smolvla", "pi0", "pi05"])
def test_a_policys_own_loss_trains_them(name: str, tmp_path: Path, small_head: Heads) -> None:
    """The tower frozen, as SmolVLA freezes it, each camera with its lens in the user's picture."""
    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    policy.train()
    policy.requires_grad_(requires_grad=False)
    batch = case.batch(policy, train=True)
    if hasattr(policy.model, "gradient_checkpointing_disable"):
        policy.model.gradient_checkpointing_disable()
    cameras = [(f, f, (w - 1) / 2, (h - 1) / 2) for f, (h, w) in zip(FOCALS, SIZES, strict=True)]
    with attach(policy, small_head(policy)) as plugin:
        tokens = DepthTokens.for_plugin(plugin).attach(plugin)
        optimiser = torch.optim.AdamW(tokens.parameters(), 1e-3)
        losses = []
        for _ in range(5):
            with tokens.cameras(*cameras, original_sizes=SIZES):
                loss = plain.loss_of(policy, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in policy.parameters())

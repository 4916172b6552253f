"""Depth beside LeRobot's policies: each claim of docs/robots.md, of the package itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.errors import NoDepthError, TowerNotFoundError

cases: Any = importlib.import_module("tests.lerobot.cases")
refused: Any = importlib.import_module("tests.lerobot.refused_policies")
plain: Any = importlib.import_module("tests.lerobot.policies")
KEYS: tuple[str, ...] = plain.KEYS
Heads = Callable[[nn.Module], DepthHead]

every = pytest.mark.parametrize("name", [case.name for case in cases.CASES])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """A case and its policy by name."""

    def of(name: str, **options: Any) -> tuple[Any, Any]:
        case = cases.BY_NAME[name]
        return case, case.make(tmp_path, **options)

    return of


@every
def test_the_tower_is_found(name: str, make: Callable[..., tuple[Any, Any]]) -> None:
    case, policy = make(name)
    assert [tower.path for tower in find_towers(policy)] == [case.tower]


@every
def test_actions_are_the_same(name: str, make: Callable[..., Any], small_head: Heads) -> None:
    case, policy = make(name)
    batch = case.batch(policy)
    alone, told = case.act(policy, batch), sorted(policy.__dict__)
    state = {key: value.clone() for key, value in policy.state_dict().items()}
    with case.attach(policy, small_head(policy)) as plugin, plugin.capture() as seen:
        assert torch.equal(case.act(policy, batch), alone)
        random, modes = torch.get_rng_state(), [one.training for one in policy.modules()]
        maps = [map_1HW for one in seen for map_1HW in one.depths]
        assert torch.equal(plugin.depths[-1], maps[-1])
        assert all(plugin.depth_of(key).nanmean().isfinite() for key in KEYS)
        assert torch.equal(torch.get_rng_state(), random)
        assert [one.training for one in policy.modules()] == modes
        assert torch.equal(case.act(policy, batch), alone)
    assert len(seen) == 2 * (1 if case.one_pass else len(KEYS))
    assert len(maps) == 2 * len(KEYS)
    assert all(map_1HW.isfinite().all() for map_1HW in maps)
    assert torch.equal(case.act(policy, batch), alone)
    assert sorted(policy.__dict__) == told
    assert all(torch.equal(value, state[key]) for key, value in policy.state_dict().items())


def red_of(case: Any, picture_B3HW: Tensor) -> Tensor:
    """What ``RedHead`` gives of a picture."""
    mean, deviation = case.red
    red_B1HW: Tensor = 2 + (picture_B3HW[:, :1] - mean) / deviation
    return red_B1HW


@every
def test_maps_are_in_each_cameras_own_picture(
    name: str, make: Callable[..., Any], red_head: Heads
) -> None:
    case, policy = make(name)
    batch = case.batch(policy)
    with case.attach(policy, red_head(policy)) as plugin:
        case.act(policy, batch)
        for key in KEYS:
            map_B1HW = plugin.depth_of(key)
            assert map_B1HW.shape == (2, 1, *batch[key].shape[-2:])
            error = (map_B1HW - red_of(case, batch[key])).abs() * 2 * case.red[1]
            # Whole pixels of the tower lie on several of the picture's; the borders are cut off.
            assert error[..., 2:-2, 2:-2].max() < 0.25
            assert error.nanmean() < 0.04


@every
def test_training_forward(name: str, make: Callable[..., Any], small_head: Heads) -> None:
    case, policy = make(name)
    policy.train()
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = case.batch(policy, train=True)

    def step() -> tuple[Tensor, list[Tensor]]:
        policy.zero_grad()
        loss = case.loss(policy, batch)
        loss.backward()
        grads = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        return loss.detach(), grads

    loss, grads = step()
    with case.attach(policy, small_head(policy)) as plugin, plugin.capture() as seen:
        again, grads_again = step()
        assert torch.equal(again, loss)
        assert all(map(torch.equal, grads_again, grads))
        assert all(plugin.depth_of(key).nanmean().isfinite() for key in KEYS)
        assert sum(len(one.depths) for one in seen) % len(KEYS) == 0


FILLS_IN = [case.name for case in cases.CASES if case.missing is not None]


@pytest.mark.parametrize("name", FILLS_IN)
def test_a_camera_that_is_missing_is_never_a_map(
    name: str, make: Callable[..., Any], red_head: Heads
) -> None:
    case, policy = make(name, **cases.BY_NAME[name].missing)
    full = case.batch(policy)
    filled = set(policy.config.image_features) - set(KEYS)
    with case.attach(policy, red_head(policy)) as plugin:
        for missing in KEYS:
            batch = {key: value for key, value in full.items() if key != missing}
            case.act(policy, batch)
            for gone in (missing, *filled):
                with pytest.raises(NoDepthError, match=f"'{gone}' was not in the batch"):
                    plugin.depth_of(gone)
            for key in set(KEYS) - {missing}:
                error = (plugin.depth_of(key) - red_of(case, batch[key])).abs() * 2 * case.red[1]
                assert error.nanmean() < 0.04


def test_a_row_whose_picture_is_padding(make: Callable[..., Any], red_head: Heads) -> None:
    case, policy = make("smolvla")
    batch = case.batch(policy)
    batch[f"{KEYS[1]}_padding_mask"] = torch.tensor([True, False])
    with attach(policy, red_head(policy)) as plugin:
        case.act(policy, batch)
        map_B1HW = plugin.depth_of(KEYS[1])
    assert map_B1HW[0].isfinite().all()
    assert map_B1HW[1].isnan().all()


@every
def test_compiled_with_the_eager_backend(
    name: str, make: Callable[..., Any], small_head: Heads
) -> None:
    case, policy = make(name)
    batch = case.batch(policy)
    around, _, method = case.runs.rpartition(".")
    module = policy.get_submodule(around)
    setattr(module, method, torch.compile(getattr(module, method), backend="eager"))
    alone = case.act(policy, batch)
    with case.attach(policy, small_head(policy)) as plugin:
        assert torch.equal(case.act(policy, batch), alone)
        assert all(plugin.depth_of(key).nanmean().isfinite() for key in KEYS)


@pytest.mark.parametrize("name", refused.REFUSED)
def test_policies_without_a_vit_tower_are_refused(name: str, tmp_path: Path) -> None:
    policy = refused.REFUSED[name](tmp_path)
    assert find_towers(policy) == []
    with pytest.raises(TowerNotFoundError, match="no vision tower"):
        DepthHead.for_host(policy)

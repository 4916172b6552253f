"""depth_of: a camera by its policy's name. LeRobot's own policies are in tests/lerobot/."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.errors import HostError, NoDepthError
from tests.test_original_sizes import red_head
from tests.tiny.table import BY_NAME

NAMES = ("cam.left", "cam.right", "cam.spare")
SIZE = 32


class Policy(nn.Module):
    """A tower, and a preparation of pictures as LeRobot's policies have one."""

    def __init__(self, order: int = 1) -> None:
        super().__init__()
        self.tower = BY_NAME["hf_siglip_vision"].host()
        self.head = nn.Linear(1, 1)
        self.config = SimpleNamespace(
            image_features=dict.fromkeys(NAMES), resize_imgs_with_padding=(SIZE, SIZE)
        )
        self.order = order

    def prepare_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        shown = [batch[name] for name in NAMES if name in batch][:: self.order]
        images = [nn.functional.interpolate(one, (SIZE, SIZE)) * 2 - 1 for one in shown]
        filled = [-torch.ones_like(images[0])] * (len(NAMES) - len(images))
        real = [torch.ones(len(images[0]), dtype=torch.bool)] * len(images)
        return [*images, *filled], [*real, *[~real[0]] * len(filled)]

    def act(self, batch: dict[str, Tensor]) -> Tensor:
        images, _ = self.prepare_images(batch)
        return torch.stack([self.tower(pixel_values=x).last_hidden_state for x in images])


def batch_of(*names: str, seed: int = 0) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.rand(2, 3, 64, 64, generator=noise) for name in names}


def shows(plugin: DepthPlugin, batch: dict[str, Tensor], name: str) -> bool:
    """Whether the map is of that camera: ``red_head`` gives 1 m and the pixels' red."""
    small = nn.functional.interpolate(batch[name][:, :1], (SIZE, SIZE)) * 2
    large = nn.functional.interpolate(small, (64, 64), mode="bilinear")
    return bool((plugin.depth_of(name) - large).abs().max() < 0.02)


@pytest.mark.parametrize("order", [1, -1])
def test_the_pixels_decide_and_not_the_order(order: int) -> None:
    policy = Policy(order)
    batch = batch_of("cam.right", "cam.left")
    alone = policy.act(batch)
    with attach(policy, red_head(policy)) as plugin:
        assert torch.equal(policy.act(batch), alone)
        assert plugin.depth.isnan().all()  # the last, which is filled in
        assert shows(plugin, batch, "cam.left")
        assert shows(plugin, batch, "cam.right")
        assert shows(plugin, batch, "cam.left")
        with pytest.raises(NoDepthError, match=r"'cam.spare' was not in the batch"):
            plugin.depth_of("cam.spare")
        with pytest.raises(HostError, match=r"'cam.top' is no picture of this policy: it has"):
            plugin.depth_of("cam.top")
    assert shows(plugin, batch, "cam.right")
    assert "prepare_images" not in policy.__dict__


def test_what_is_not_certain_is_no_map() -> None:
    policy = Policy()
    batch = batch_of("cam.left", "cam.right")
    with attach(policy, red_head(policy)) as plugin:
        with pytest.raises(NoDepthError, match="has prepared no pictures"):
            plugin.depth_of("cam.left")
        policy.act(batch)
        batch["cam.left"].add_(0.1)
        with pytest.raises(NoDepthError, match=r"saw the pixels of 'cam.left'"):
            plugin.depth_of("cam.left")
        assert shows(plugin, batch, "cam.right")
        policy.prepare_images(batch_of("cam.left", seed=2))
        with pytest.raises(NoDepthError, match="none of the 0 tower passes"):
            plugin.depth_of("cam.left")
        thread = threading.Thread(target=policy.act, args=(batch_of("cam.right", seed=3),))
        policy.act(batch)
        thread.start()
        thread.join()
        assert shows(plugin, batch, "cam.left")


def test_hosts_without_names_say_so() -> None:
    policy = Policy()
    with attach(policy.tower, red_head(policy.tower)) as plugin:
        policy.act(batch_of("cam.left"))
        with pytest.raises(NoDepthError, match="takes no pictures by name"):
            plugin.depth_of("cam.left")


def test_copies_are_plain_and_two_heads_work() -> None:
    policy: Any = Policy()
    batch = batch_of("cam.left")
    first, second = attach(policy, red_head(policy)), attach(policy, red_head(policy))
    twin = copy.deepcopy(policy)
    policy.act(batch)
    twin.act(batch_of("cam.left", seed=5))
    assert twin.prepare_images.__self__ is twin
    first.detach()
    assert shows(first, batch, "cam.left")
    assert shows(second, batch, "cam.left")
    second.detach()
    assert "prepare_images" not in policy.__dict__

"""depth_of: a camera by its policy's name. LeRobot's own policies are in tests/lerobot/."""

from __future__ import annotations

import copy
import functools
import inspect
import random
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import ClipDepthError, HostError, NoDepthError
from tests.test_original_sizes import red_head
from tests.tiny.table import BY_NAME

NAMES = ("cam.left", "cam.right", "cam.spare")
METHODS = ("select_action", "predict_action_chunk", "forward")
SIZE = 32
Views = list[Tensor]


def in_order(given: Views, filled: Views) -> Views:
    return [*given, *filled]


def backwards(given: Views, filled: Views) -> Views:
    return [*given[::-1], *filled]


def filled_first(given: Views, filled: Views) -> Views:
    return [*filled, *given]


def in_one_pass(given: Views, filled: Views) -> Views:
    """Rows by cameras, the last camera first."""
    return [torch.stack([*filled, *given[::-1]], dim=1).flatten(0, 1)]


class Policy(nn.Module):
    """A tower, run as LeRobot's policies run theirs: with a queue of actions, in ``predict``'s."""

    def __init__(self, order: Callable[[Views, Views], Views] = in_order) -> None:
        super().__init__()
        self.tower = BY_NAME["hf_siglip_vision"].host()
        self.head = nn.Linear(1, 1)
        self.config = SimpleNamespace(
            image_features=dict.fromkeys(NAMES), resize_imgs_with_padding=(SIZE, SIZE)
        )
        self.order = order
        self.reset()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque(maxlen=2)

    def prepare(self, picture: Tensor) -> Tensor:
        return nn.functional.interpolate(picture, (SIZE, SIZE)) * 2 - 1

    def see(self, batch: dict[str, Tensor]) -> Tensor:
        shown = [self.prepare(batch[name]) for name in NAMES if name in batch]
        filled = [-torch.ones_like(shown[0])] * (len(NAMES) - len(shown))
        seen = [self.tower(pixel_values=x)[0].mean() for x in self.order(shown, filled)]
        return torch.stack(seen)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.see(batch).sum()

    def predict_action_chunk(self, batch: dict[str, Tensor], noise: float = 0) -> Tensor:
        self.eval()
        return self.see(batch) + noise + torch.rand(3, 1)

    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:2])
        return self._queue.popleft()


def batch_of(*names: str, seed: int = 0, rows: int = 2) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.rand(rows, 3, 64, 64, generator=noise) for name in names}


def shows(plugin: DepthPlugin, batch: dict[str, Tensor], name: str) -> bool:
    """Whether the map is of that camera: ``red_head`` gives 1 m and the pixels' red."""
    small = nn.functional.interpolate(batch[name][:, :1], (SIZE, SIZE)) * 2
    large = nn.functional.interpolate(small, (64, 64), mode="bilinear")
    return bool((plugin.depth_of(name) - large).abs().max() < 0.02)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("order", [in_order, backwards, filled_first, in_one_pass])
@pytest.mark.parametrize("method", METHODS)
def test_the_pixels_decide_and_not_the_order(
    order: Callable[[Views, Views], Views], method: str, rows: int
) -> None:
    policy = Policy(order).train()
    batch = batch_of("cam.right", "cam.left", rows=rows)
    torch.manual_seed(0)
    alone = getattr(policy, method)(batch)
    policy.reset()
    with attach(policy, red_head(policy)) as plugin:
        torch.manual_seed(0)
        assert torch.equal(getattr(policy, method)(batch), alone)
        states = torch.get_rng_state(), random.getstate(), policy.training, list(policy._queue)
        assert shows(plugin, batch, "cam.left")
        assert shows(plugin, batch, "cam.right")
        assert shows(plugin, batch, "cam.left")
        with pytest.raises(NoDepthError, match=r"'cam.spare' was not in the batch.*had 'cam.left'"):
            plugin.depth_of("cam.spare")
        with pytest.raises(HostError, match=r"'cam.top' is no picture of this policy: it has"):
            plugin.depth_of("cam.top")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), policy.training, list(policy._queue)) == states[1:]
        assert list(inspect.signature(policy.forward).parameters) == ["batch"]
    assert shows(plugin, batch, "cam.right")
    assert not {*METHODS} & {*policy.__dict__}


@pytest.mark.parametrize("order", [in_order, in_one_pass])
def test_rows_that_show_the_same_have_lenses_of_their_own(
    order: Callable[[Views, Views], Views],
) -> None:
    policy = Policy(order)
    head = DepthHead.for_host(policy, preset="fast", canonical_focal=100.0).eval()
    batch = {name: x.expand(4, -1, -1, -1) for name, x in batch_of(*NAMES[:2], rows=1).items()}
    with torch.no_grad(), attach(policy, head) as plugin:
        policy.predict_action_chunk(batch)
        maps_B1HW = plugin.depth_of("cam.left", focal_px=[10.0, 20.0, 40.0, 80.0])
    for row, factor in enumerate((2.0, 4.0, 8.0), 1):
        torch.testing.assert_close(maps_B1HW[row], factor * maps_B1HW[0])


def test_between_two_runs_of_the_tower_it_is_the_frame_of_the_last() -> None:
    policy = Policy()
    first, second = (batch_of("cam.left", seed=seed) for seed in (0, 1))
    with attach(policy, red_head(policy)) as plugin:
        policy.select_action(first)
        policy.select_action(second)  # from the queue
        assert shows(plugin, first, "cam.left")
        policy.select_action(second)
        assert shows(plugin, second, "cam.left")


def test_what_is_not_certain_is_no_map() -> None:
    policy = Policy()
    batch = batch_of("cam.left", "cam.right")
    with attach(policy, red_head(policy)) as plugin:
        with pytest.raises(NoDepthError, match="has not run in this thread"):
            plugin.depth_of("cam.left")
        policy.predict_action_chunk(batch=batch)
        batch["cam.left"].add_(0.1)
        with pytest.raises(NoDepthError, match=r"saw the pixels of 'cam.left'"):
            plugin.depth_of("cam.left")
        assert shows(plugin, batch, "cam.right")
        other = batch_of("cam.right", seed=3)
        thread = threading.Thread(target=policy.predict_action_chunk, args=(other,))
        policy.predict_action_chunk(batch)
        thread.start()
        thread.join()
        assert shows(plugin, batch, "cam.left")
        with pytest.raises(ValueError, match="spatial dimensions"):
            policy.predict_action_chunk({**batch, "cam.left": torch.zeros(2, 3, 4)})
        with pytest.raises(NoDepthError, match="its last run ended in an error"):
            plugin.depth_of("cam.left")


class _AtRandom(Policy):
    def prepare(self, picture: Tensor) -> Tensor:
        left = int(torch.randint(32, ()))
        return super().prepare(picture[..., left : left + 32])


class _Tiles(Policy):
    def prepare(self, picture: Tensor) -> Tensor:
        return torch.cat([super(_Tiles, self).prepare(one) for one in picture.chunk(2, dim=3)])


class _Mirrored(Policy):
    def prepare(self, picture: Tensor) -> Tensor:
        return super().prepare(picture.flip(3))


class _Outside(Policy):
    """Is given what was prepared outside, beside the pictures."""

    def see(self, batch: dict[str, Tensor]) -> Tensor:
        seen: Tensor = self.tower(pixel_values=batch["pixels"])[0].mean()[None]
        return seen


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_AtRandom, "saw the pixels of .*at random"),
        (_Tiles, "lie in 2 ways"),
        (_Mirrored, "is not the picture resized, cropped and padded: read .depths"),
        (_Outside, r"prepared before it.*processor=preprocessor"),
    ],
)
def test_pictures_that_cannot_be_told(kind: type[Policy], message: str) -> None:
    policy = kind()
    batch = batch_of("cam.left", "cam.right")
    batch["pixels"] = torch.rand(2, 3, SIZE, SIZE)
    with attach(policy, red_head(policy)) as plugin:
        policy.predict_action_chunk(batch)
        with pytest.raises(ClipDepthError, match=message):
            plugin.depth_of("cam.left")


class Pipeline:
    """As LeRobot's: steps of a transition, and hooks before them."""

    def __init__(self, *steps: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.steps, self.before_step_hooks = steps, list[Any]()

    def register_before_step_hook(self, hook: Any) -> None:
        self.before_step_hooks.append(hook)

    def to_output(self, transition: dict[str, Any]) -> dict[str, Any]:
        return dict(transition["observation"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        transition: dict[str, Any] = {"observation": dict(batch)}
        for number, step in enumerate(self.steps):
            for hook in self.before_step_hooks:
                hook(number, transition)
            transition = step(transition)
        return self.to_output(transition)


def swap(transition: dict[str, Any]) -> dict[str, Any]:
    """The robot's own left is the policy's right."""
    names = {"cam.left": "cam.right", "cam.right": "cam.left"}
    seen = transition["observation"]
    return {"observation": {names.get(name, name): x for name, x in seen.items()}}


class Pack:
    """Takes the pictures out of the batch; notes what it has seen."""

    def __init__(self) -> None:
        self.noted: Any = None

    def __call__(self, transition: dict[str, Any]) -> dict[str, Any]:
        seen = transition["observation"]
        shown = [nn.functional.interpolate(seen.pop(n), (SIZE, SIZE)) for n in NAMES if n in seen]
        self.noted = shown
        seen["pixels"] = torch.stack(shown[::-1], dim=1).flatten(0, 1) * 2 - 1
        return transition


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pipeline_prepares_the_pictures(rows: int) -> None:
    policy = _Outside()
    pack = Pack()
    pipeline = Pipeline(swap, pack)
    first, second = (batch_of("cam.left", "cam.right", seed=s, rows=rows) for s in (0, 1))
    with attach(policy, red_head(policy), processor=pipeline) as plugin:
        policy.select_action(pipeline(first))
        policy.select_action(pipeline(second))  # from the queue
        policy.select_action(pipeline(second))
        noted = pack.noted
        named = {"cam.left": second["cam.right"], "cam.right": second["cam.left"]}
        for name in ("cam.left", "cam.right"):
            assert shows(plugin, named, name)
        assert pack.noted is noted
        with pytest.raises(NoDepthError, match=r"'cam.spare' was not in the batch"):
            plugin.depth_of("cam.spare")
        policy.reset()
        policy.select_action({"pixels": torch.rand(2, 3, SIZE, SIZE)})  # not the pipeline's
        with pytest.raises(NoDepthError, match=r"saw the pixels of 'cam.left'"):
            plugin.depth_of("cam.left")
    assert pipeline.before_step_hooks == []


def test_hosts_without_names_say_so() -> None:
    policy = Policy()
    with attach(policy.tower, red_head(policy.tower)) as plugin:
        policy.select_action(batch_of("cam.left"))
        with pytest.raises(NoDepthError, match="takes no pictures by name"):
            plugin.depth_of("cam.left")


def test_copies_are_plain_and_two_heads_work() -> None:
    policy: Any = Policy()
    batch = batch_of("cam.left")
    first, second = attach(policy, red_head(policy)), attach(policy, red_head(policy))
    twin = copy.deepcopy(policy)
    policy.select_action(batch)
    twin.select_action(batch_of("cam.left", seed=5))
    assert twin.select_action.__self__ is twin
    assert shows(second, batch, "cam.left")
    first.detach()
    assert shows(first, batch, "cam.left")
    assert shows(second, batch, "cam.left")
    policy.forward = functools.partial(policy.forward)  # as accelerate wraps it
    second.detach()
    assert {*METHODS} & {*policy.__dict__} == {"forward"}
    assert torch.isfinite(policy.forward(batch))


class _ActionHead(nn.Module):
    """Holds a language model that sees, and acts on what that gave, in a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = BY_NAME["llava"].host()
        self.blocks = nn.ModuleList(nn.Linear(99, 99) for _ in range(4))

    def forward(self, fused: Tensor) -> Tensor:
        for block in self.blocks:
            fused = block(fused)
        return fused.mean()[None]


class _HeadBehind(Policy):
    """EVO1's way."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Identity()
        self.model = _ActionHead()

    def see(self, batch: dict[str, Tensor]) -> Tensor:
        case = BY_NAME["llava"]
        assert case.inputs is not None
        inputs = case.inputs(self.prepare(batch["cam.left"]))
        action: Tensor = self.model(self.model.vlm(**inputs).logits)
        return action


def test_an_action_head_behind_leaves_the_depth_of_the_run() -> None:
    policy = _HeadBehind()
    batch = batch_of("cam.left")
    with torch.no_grad(), attach(policy, red_head(policy)) as plugin:
        policy.select_action(batch)
        assert len(plugin.depths) == 2
        assert shows(plugin, batch, "cam.left")
        policy.model(torch.rand(1, 1, 99))  # outside a run it is another prompt, without a picture
        with pytest.raises(NoDepthError, match="without its vision tower"):
            _ = plugin.depths

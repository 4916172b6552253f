"""Modules whose class runs ``forward`` past torch's hooks: tapped, and left as they were."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.forwards import runs_hooks
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from tests.tiny.case import fresh
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
CASE = BY_NAME["hf_clip_vision"]


def _past_hooks(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As vLLM's ``support_torch_compile`` has it, which compiles nothing here."""
    return self.forward(*args, **kwargs)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def engine_like(*, tower: bool = False) -> nn.Module:
    """A host whose blocks (and tower) run ``forward`` themselves."""
    host = fresh(CASE.build)
    found = choose_tower(host)
    for module in (*found.blocks, *((found.module,) if tower else ())):
        kind = type(module)
        if kind not in _KINDS:
            _KINDS[kind] = type(kind.__name__, (kind,), {"__call__": _past_hooks})
            _KINDS[kind].__module__ = __name__
            globals()[kind.__name__] = _KINDS[kind]  # so that it can be pickled
        module.__class__ = _KINDS[kind]
    return host


def test_which_modules_run_hooks() -> None:
    class Hands(nn.Linear):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)

    class Below(Hands):
        pass

    class Ends(Below):
        __call__ = _past_hooks

    assert runs_hooks(nn.Linear(1, 1))
    assert runs_hooks(Below(1, 1))
    assert not runs_hooks(Ends(1, 1))


@pytest.mark.parametrize("tower", [False, True])
def test_depth_as_of_a_plain_host(tower: bool, make_head: MakeHead) -> None:
    plain, host, x = fresh(CASE.build), engine_like(tower=tower), CASE.pixels()
    head = make_head(plain, structural_levels=(2, 1, 0), context="mean")
    before = [vars(one).get("forward") for one in host.modules()]
    alone = CASE.run(host, x)
    with attach(plain, head) as plugin:
        CASE.run(plain, x)
        expected = plugin.depth
    with attach(host, head) as plugin:
        assert all(map(torch.equal, alone, CASE.run(host, x)))
        assert torch.equal(plugin.depth, expected)
        assert torch.equal(plugin(x), expected)
        with pytest.raises(HeadMismatchError, match="attached"):
            attach(host, head)
    assert [vars(one).get("forward") for one in host.modules()] == before
    assert all(map(torch.equal, alone, CASE.run(host, x)))


def test_two_heads_come_and_go_in_any_order(make_head: MakeHead) -> None:
    host, x = engine_like(), CASE.pixels()
    block = choose_tower(host).blocks[0]
    first = attach(host, make_head(host, context="mean"))
    second = attach(host, make_head(host, context="cls"))
    first.detach()
    assert "forward" in vars(block)
    CASE.run(host, x)
    assert second.depth.shape == (2, 1, 32, 32)
    second.detach()
    assert "forward" not in vars(block)


def test_a_forward_of_the_instance_is_given_back(make_head: MakeHead) -> None:
    host, x = engine_like(), CASE.pixels()
    block = choose_tower(host).blocks[0]
    calls: list[int] = []
    plain = block.forward

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    block.forward = own
    with attach(host, make_head(host, structural_levels=(2, 1, 0))):
        CASE.run(host, x)
    assert calls == [1]
    assert vars(block)["forward"] is own


def test_a_pass_that_goes_past_forward_is_an_error(make_head: MakeHead) -> None:
    """As compiled: ``__call__`` runs code that was made before."""
    host, x = engine_like(), CASE.pixels()
    block = choose_tower(host).blocks[1]
    made = type(block).forward

    class Compiled(type(block)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return made(self, *args, **kwargs)

    with attach(host, make_head(host, structural_levels=(2, 1, 0))) as plugin:
        block.__class__ = Compiled
        CASE.run(host, x)
        with pytest.raises(NoDepthError, match="level 2"):
            _ = plugin.depth


def test_copies_carry_nothing_of_ours(make_head: MakeHead) -> None:
    host, x = engine_like(tower=True), CASE.pixels()
    with attach(host, make_head(host)) as plugin:
        CASE.run(host, x)
        expected = plugin.depth
        pickled = pickle.dumps(host)
        twins = [copy.deepcopy(host), pickle.loads(pickled)]  # noqa: S301
        assert b"clipdepth_plugin" not in pickled
        other = CASE.pixels(seed=5)
        for twin in twins:
            assert all(map(torch.equal, CASE.run(twin, x), CASE.run(host, x)))
            CASE.run(twin, other)
            CASE.run(host, x)
            assert torch.equal(plugin.depth, expected)
    for twin in twins:
        with attach(twin, make_head(twin)) as plugin:
            CASE.run(twin, x)
            assert torch.equal(plugin.depth, expected)


def test_a_pass_under_way_is_left_alone(make_head: MakeHead) -> None:
    """A plug-in that is attached while another thread runs the tower does not record that pass."""
    host, x = engine_like(tower=True), CASE.pixels()
    inside, go = threading.Event(), threading.Event()
    seen: list[Any] = []

    def wait(*_: Any) -> None:
        inside.set()
        go.wait(10)

    handle = choose_tower(host).patch_embed.register_forward_pre_hook(wait)

    def run(plugin: list[Any]) -> None:
        CASE.run(host, x)
        try:
            seen.append(plugin[0].depth)
        except NoDepthError as error:
            seen.append(str(error))

    plugins: list[Any] = []
    thread = threading.Thread(target=run, args=(plugins,))
    thread.start()
    assert inside.wait(10)
    handle.remove()
    with attach(host, make_head(host)) as plugin:
        plugins.append(plugin)
        go.set()
        thread.join(10)
    assert "under way" in seen[0]


class Patches(nn.Module):
    """A convolution as an engine has it: of no class of torch's."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups"):
            setattr(self, name, getattr(plain, name))

    def forward(self, x: Tensor) -> Tensor:
        like: Any = self
        out: Tensor = nn.functional.conv2d(x, like.weight, like.bias, like.stride)
        return out


class Deconvolution(Patches):
    """The weight has the inputs first."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(plain)
        self.weight = nn.Parameter(plain.weight.transpose(0, 1))


@pytest.mark.parametrize(("kind", "found"), [(Patches, True), (Deconvolution, False)])
def test_patch_embeddings_of_other_classes(kind: type[Patches], found: bool) -> None:
    host: Any = fresh(CASE.build)
    path = next(name for name, one in host.named_modules() if isinstance(one, nn.Conv2d))
    parent, _, name = path.rpartition(".")
    setattr(host.get_submodule(parent), name, kind(host.get_submodule(path)))
    if found:
        assert choose_tower(host).patch_size == (8, 8)
    else:
        with pytest.raises(ValueError, match="no vision tower"):
            choose_tower(host)

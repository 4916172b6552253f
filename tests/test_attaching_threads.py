"""Attaching and detaching while other threads run or compile the host: it goes on as it was.

Events, and dictionaries that call back, put the change where it would do harm.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach, find_towers
from clipdepth_plugin.adapters.taps import owners
from clipdepth_plugin.adapters.threads import changing
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from tests.tiny.packed import PACKED

MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]
SECONDS = 30


class _Pause:
    """A forward pre-hook that lets the test do something in the middle of another thread's pass."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_: Any) -> None:
        self.reached.set()
        assert self.go_on.wait(SECONDS)


@pytest.mark.parametrize("change", ["attach", "detach"])
@pytest.mark.parametrize("where", ["patch embedding", "first block", "last block"])
def test_a_pass_under_way_goes_on(
    where: str, change: str, host: Any, head: DepthHead, make_pixels: MakePixels
) -> None:
    (tower,) = find_towers(host)
    blocks = {"patch embedding": tower.patch_embed, "first block": tower.blocks[0]}
    module = blocks.get(where, tower.blocks[-1])
    x = make_pixels()
    with torch.no_grad():
        alone = host(x).last_hidden_state
    plugin = attach(host, head)
    with torch.no_grad():
        host(x)
    expected = plugin.depth
    if change == "attach":
        plugin.detach()
    pause = _Pause()
    handle = module.register_forward_pre_hook(pause)

    def work() -> Tensor:
        with torch.no_grad():
            out = host(x).last_hidden_state
            handle.remove()
            if change == "attach":
                with pytest.raises(NoDepthError, match=r"under way|no tower pass in this thread"):
                    _ = plugin.depth
                host(x)
                assert torch.equal(plugin.depth, expected)
        return cast("Tensor", out)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        assert pause.reached.wait(SECONDS)
        getattr(plugin, change)()
        pause.go_on.set()
        assert torch.equal(result.result(SECONDS), alone)
    plugin.detach()


def test_a_pass_under_way_whose_mask_was_not_seen_gives_no_depth(make_head: MakeHead) -> None:
    """Its patch embedding fires, but what the tower was called with is not known."""
    case = next(case for case in PACKED if case.name == "idefics2")
    host = case.host()
    inputs = case.pack(case.pictures())
    (tower,) = find_towers(host)
    pause = _Pause()
    handle = tower.patch_embed.register_forward_pre_hook(pause)
    head = make_head(host, context="mean")

    def work() -> None:
        with torch.no_grad():
            case.run(host, inputs)
        with pytest.raises(NoDepthError, match="was under way in this thread when"):
            _ = plugin.depths
        handle.remove()
        with torch.no_grad():
            case.run(host, inputs)
        assert len(plugin.depths) == len(case.views)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        assert pause.reached.wait(SECONDS)
        plugin = attach(host, head)
        pause.go_on.set()
        result.result(SECONDS)
    plugin.detach()


class _CallsBack(OrderedDict[int, bool]):
    """Torch's note of which hooks take keywords: the host runs just before one is written."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__()
        self.run = run

    def __setitem__(self, key: int, value: bool) -> None:
        self.run()
        super().__setitem__(key, value)


@pytest.mark.parametrize("name", ["hf_clip_vision", "llava"])
def test_a_hook_that_is_half_registered_or_half_removed(
    name: str,
    make_host: Callable[[str], nn.Module],
    make_head: MakeHead,
    make_pixels: MakePixels,
    make_prompt: Callable[..., dict[str, Tensor]],
) -> None:
    host: Any = make_host(name)
    inputs = {"pixel_values": make_pixels(), **(make_prompt() if name == "llava" else {})}
    head = make_head(host)
    (tower,) = find_towers(host)
    ran: list[Any] = []
    with torch.no_grad():
        run: Callable[[], Any] = lambda: ran.append(host(**inputs)[0])  # noqa: E731
        run()
        plugin = DepthPlugin(host, head)
        for module in {host, tower.module, tower.blocks[0]}:
            module._forward_pre_hooks_with_kwargs = _CallsBack(run)
        # Torch has listed the hooks that it will call before it calls this one.
        handle = tower.module.register_forward_pre_hook(lambda *_: plugin.detach())
        handles = [handle, host.register_forward_pre_hook(lambda *_: plugin.detach())]
        plugin.attach()
        run()
        for one in handles:
            one.remove()
    assert len(ran) > 3
    assert all(torch.equal(out, ran[0]) for out in ran)


def test_one_of_two_threads_attaches_a_head(
    host: nn.Module, head: DepthHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def look(tower: Any) -> list[object]:
        found = owners(tower)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # both look before either attaches
        return found

    monkeypatch.setattr("clipdepth_plugin.plugin.depth_plugin.owners", look)

    def work(_: int) -> Any:
        try:
            return attach(host, head)
        except HeadMismatchError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    refused = [one for one in results if isinstance(one, HeadMismatchError)]
    assert len(refused) == 1
    assert "attached to 'this tower' already" in str(refused[0])
    for one in results:
        if one not in refused:
            one.detach()


Change = Callable[[nn.Module, DepthHead, Tensor], Any]


def _attach(host: nn.Module, head: DepthHead, x: Tensor) -> Any:
    return attach(host, head)


def _call_detached(host: nn.Module, head: DepthHead, x: Tensor) -> Any:
    plugin = DepthPlugin(host, head)
    plugin(x)
    return plugin


class _Changes:
    """A change of the host in another thread, which must wait while ``checked`` is called."""

    def __init__(self, *change: Any) -> None:
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, args=change, daemon=True)

    def _run(self, change: Change, *arguments: Any) -> None:
        self.plugin = change(*arguments)
        self.done.set()

    def checked(self) -> None:
        """Starts it once."""
        if not self.done.is_set() and not self.thread.is_alive():
            self.thread.start()
            assert not self.done.wait(0.3)


@pytest.mark.parametrize("change", [_attach, _call_detached])
def test_a_change_waits_for_a_compilation(
    change: Change, host: Any, head: DepthHead, make_pixels: MakePixels
) -> None:
    x = make_pixels()
    changes = _Changes(change, host, head, x)

    def backend(graph: Any, _: Any) -> Any:
        changes.checked()
        return graph

    with torch.no_grad():
        alone = host(x).last_hidden_state
        compiled: Any = torch.compile(host, backend=backend)
        assert torch.allclose(compiled(x).last_hidden_state, alone, atol=1e-6)
        assert changes.done.wait(SECONDS)
        assert torch.allclose(compiled(x).last_hidden_state, alone, atol=1e-6)
        if change is _attach:
            assert changes.plugin.depth.shape[0] == len(x)
    changes.plugin.detach()
    torch.compiler.reset()


@pytest.mark.parametrize("change", [_attach, _call_detached])
def test_a_change_waits_for_another_threads(
    change: Change,
    host: Any,
    make_head: MakeHead,
    make_pixels: MakePixels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = _Changes(change, host, make_head(host), make_pixels())

    def look(tower: Any) -> list[object]:
        monkeypatch.undo()
        changes.checked()
        return owners(tower)

    monkeypatch.setattr("clipdepth_plugin.plugin.depth_plugin.owners", look)
    with attach(host, make_head(host)):
        assert changes.done.wait(SECONDS)
    changes.plugin.detach()


def test_a_pass_of_an_attached_plugin_does_not_wait(
    host: Any, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin, ThreadPoolExecutor(1) as pool, changing():
        assert pool.submit(plugin, make_pixels()).result(SECONDS) is not None

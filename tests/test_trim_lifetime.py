"""attach(..., trim=True) where the plug-in is collected, the host copied, the head overlapped."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.skipping import Skip, Trimmed
from clipdepth_plugin.adapters.taps import Hook, is_noop
from tests.test_trimming import CASES, OPTIONS, SHALLOW, outputs, same, stand_ins
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
LLAVA = BY_NAME["llava"]


def hooks_of(host: nn.Module) -> list[Any]:
    each = ({**m._forward_hooks, **m._forward_pre_hooks} for m in host.modules())
    return [hook for hooks in each for hook in hooks.values()]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is collected but where the test says so."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("kind", "method", "passes"),
    [(Trimmed, "__init__", 0), (Skip, "enter", 1), (Skip, "leave", 1)],
    ids=["before", "as blocks are left out", "as they are put back"],
)
def test_a_plugin_that_is_collected_in_the_middle_of_a_hook(
    kind: type, method: str, passes: int, make_head: MakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector runs in whatever thread allocates, the one that holds our lock too."""
    case, _ = CASES["llava, -3"]  # two blocks can be left out: it comes between them
    assert case.inputs is not None
    host: Any = case.host()
    inputs = case.inputs(case.pixels())
    expected = outputs(host, **inputs, **OPTIONS)
    plugin: Any = attach(host, make_head(host, structural=False, **SHALLOW), trim=True)
    plugin.cycle = [plugin]
    trim, gone = plugin.trim, weakref.ref(plugin)
    del plugin
    own = getattr(kind, method)

    def collecting(*args: Any) -> None:
        own(*args)
        gc.collect()

    monkeypatch.setattr(kind, method, collecting)
    seen: list[list[Tensor]] = []
    thread = threading.Thread(
        target=lambda: seen.append(outputs(host, **inputs, **OPTIONS)), daemon=True
    )
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "deadlock"
    assert gone() is None
    assert same(seen[0], expected)
    assert (trim.passes, trim.refused is None) == (passes, passes == 1)
    assert stand_ins(host) == []
    assert not any(isinstance(hook, Hook) for hook in hooks_of(host))


def test_a_host_that_was_copied_while_attached_can_be_trimmed(make_head: MakeHead) -> None:
    """What our hooks are in the copy watches nothing."""
    assert LLAVA.inputs is not None
    host: Any = LLAVA.host()
    inputs = LLAVA.inputs(LLAVA.pixels())
    expected = host.generate(**inputs, **OPTIONS)
    head = make_head(host, structural=False, **SHALLOW)
    with attach(host, head, trim=True):
        twin: Any = copy.deepcopy(host)
    twin = copy.deepcopy(twin)  # and a copy of the copy
    assert any(map(is_noop, hooks_of(twin))), "nothing to test"
    with attach(twin, head, trim=True) as plugin:
        assert torch.equal(twin.generate(**inputs, **OPTIONS), expected)
        assert plugin.trim is not None
        assert (plugin.trim.passes, plugin.trim.refused) == (1, None)


def test_trimming_and_overlapping_at_once_on_a_cpu(make_head: MakeHead) -> None:
    assert LLAVA.inputs is not None
    host: Any = LLAVA.host()
    inputs = LLAVA.inputs(LLAVA.pixels())
    head = make_head(host, **SHALLOW)
    with attach(host, head) as plugin:
        expected = host.generate(**inputs, **OPTIONS)
        depth = plugin.depth
    with attach(host, head, trim=True, overlap=True) as both:
        assert torch.equal(host.generate(**inputs, **OPTIONS), expected)
        assert torch.equal(both.depth, depth)
        assert both.trim is not None
        assert both.trim.passes == 1
        assert both.overlap is not None
        assert both.overlap.why_not is not None

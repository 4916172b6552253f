"""attach(..., trim=True): blocks that nobody needs are left out, and nobody can tell."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.adapters.trimming import _shows_tower
from tests.tiny.case import HostCase, tensors
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
# Level 2 is the deepest read: what is left of four blocks is the host's to need.
SHALLOW: dict[str, Any] = {"context": "mean", "semantic_levels": (2, 2, 1, 1)}
WASTE_ONE = (
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_next_video_frames",
    "video_llava_image",
    "video_llava_video",
    "vip_llava",
)


def reading(name: str, layer: int) -> HostCase:
    """A row of the host table whose host reads other hidden states."""
    case = BY_NAME[name]

    def build() -> nn.Module:
        host: Any = case.build()
        host.config.vision_feature_layer = layer
        host.model.config.vision_feature_layer = layer
        return cast("nn.Module", host)

    return HostCase(**{**vars(case), "build": build})


@contextmanager
def trimmed(case: HostCase, make_head: MakeHead, **options: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(host, plug-in, what the blocks' attention ran)."""
    host: Any = case.host()
    head = make_head(host, tower=case.choose, structural=False, **{**SHALLOW, **options})
    ran: list[int] = []
    for level, block in enumerate(choose_tower(host, case.choose).blocks, start=1):
        attention = next(m for n, m in block.named_children() if "attn" in n)
        inner: Any = next(m for m in attention.modules() if isinstance(m, nn.Linear))
        own = inner.forward  # an attribute and no hook: hooks forbid trimming

        def counted(x: Any, own: Any = own, level: int = level) -> Any:
            ran.append(level)
            return own(x)

        inner.forward = counted
    with attach(host, head, tower=case.choose, trim=True) as plugin:
        yield host, plugin, ran


CASES = {name: (BY_NAME[name], 3) for name in WASTE_ONE} | {
    "llava, -3": (reading("llava", -3), 2),
    "aya_vision, -2": (reading("aya_vision", -2), 3),
    "llava_onevision, -3": (reading("llava_onevision", -3), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_generate_leaves_out_what_nobody_needs(name: str, make_head: MakeHead) -> None:
    case, kept = CASES[name]
    assert case.inputs is not None
    inputs = case.inputs(case.pixels())
    alone = case.host()
    expected = alone.generate(**inputs, **OPTIONS)  # type: ignore[operator]
    with trimmed(case, make_head) as (host, plugin, ran):
        before = [set(vars(module)) for module in host.modules()]
        assert plugin.trim.plan.blocks == tuple(
            f"{plugin.tower.blocks_path}.{index}" for index in range(kept, 4)
        )
        assert torch.equal(host.generate(**inputs, **OPTIONS), expected)
        assert sorted(set(ran)) == list(range(1, kept + 1))
        assert plugin.trim.passes == 1
        ran.clear()
        untrimmed = plugin(case.pixels()).detach()
        torch.testing.assert_close(plugin.depth, untrimmed, rtol=0, atol=1e-5)
        after = [set(vars(module)) for module in host.modules()]
        assert [b - a for a, b in zip(before, after, strict=True) if "forward" in b - a] == []


def test_outputs_that_show_the_tower_are_not_trimmed(make_head: MakeHead) -> None:
    """Forwards whose outputs hold the tower's own, features asked for, and the tower itself."""
    case = BY_NAME["llava"]
    assert case.inputs is not None
    inputs, x = case.inputs(case.pixels()), case.pixels()
    plain: Any = case.host()
    shows = _shows_tower(type(plain).__module__)
    with torch.no_grad(), trimmed(case, make_head) as (host, plugin, ran):
        runs: tuple[Callable[[Any], Any], ...] = (
            lambda host: host.get_image_features(x),
            lambda host: host.model.get_image_features(x),
            lambda host: host.model.vision_tower(x, output_hidden_states=True),
        )
        for run in runs:
            ran.clear()
            seen, expected = run(host), run(plain)
            assert sorted(set(ran)) == [1, 2, 3, 4]
            if hasattr(seen, "last_hidden_state"):
                assert torch.equal(seen.last_hidden_state, expected.last_hidden_state)
        assert plugin.trim.passes == 0
        ran.clear()
        assert torch.equal(host(**inputs).logits, plain(**inputs).logits)
        assert (4 in ran) == shows
        ran.clear()
        host(**inputs, vision_feature_layer=-1)
        assert 4 in ran


def test_whoever_looks_keeps_the_blocks_running(make_head: MakeHead) -> None:
    case = BY_NAME["llava"]
    assert case.inputs is not None
    inputs = case.inputs(case.pixels())
    with trimmed(case, make_head) as (host, plugin, ran):
        tower = host.model.vision_tower
        for module in (tower, plugin.tower.blocks[3], plugin.tower.blocks[3].mlp):
            handle = module.register_forward_hook(lambda *_: None)
            ran.clear()
            host.generate(**inputs, **OPTIONS)
            assert 4 in ran
            handle.remove()
        other = make_head(host, context="mean", semantic_levels=(4, 3, 2, 1))
        with attach(host, other) as deep:
            ran.clear()
            host.generate(**inputs, **OPTIONS)
            assert 4 in ran
            assert deep.depth.isfinite().all()
        ran.clear()
        host.train()
        host.generate(**inputs, **OPTIONS)
        host.eval()
        assert 4 in ran
        plugin.detach()
        ran.clear()
        host.generate(**inputs, **OPTIONS)
        assert 4 in ran


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("paligemma", {}, "not of a family known"),
        ("hf_siglip_vision", {}, "not of a family known"),
        ("llava_onevision", {}, "the host reads level 4"),
        ("aya_vision", {}, "the host reads level 4"),
        ("llava", {"semantic_levels": (4, 3, 2, 1)}, "the head level 4"),
        ("llava", {"context": "pooled"}, "the pooled vector"),
    ],
)
def test_nothing_to_leave_out(
    name: str,
    options: dict[str, Any],
    why: str,
    make_head: MakeHead,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = BY_NAME[name]
    with caplog.at_level(logging.INFO, "clipdepth_plugin"):
        with trimmed(case, make_head, **options) as (host, plugin, ran):
            assert plugin.trim.plan.blocks == ()
            assert why in plugin.trim.plan.why
            case.run(host, case.pixels())
        assert 4 in ran
    assert "trim: nothing can be left out" in caplog.text


def test_threads_and_plugins_at_once(make_head: MakeHead) -> None:
    """Some passes are trimmed and some not, in four threads, by two plug-ins."""
    case = BY_NAME["llava"]
    assert case.inputs is not None
    host: Any = case.host()
    pictures = [case.pixels(seed) for seed in range(4)]
    inputs = [case.inputs(x) for x in pictures]
    expected = [host.generate(**one, **OPTIONS) for one in inputs]
    with torch.no_grad():
        last = [host.model.vision_tower(x).last_hidden_state for x in pictures]
    heads = [make_head(host, structural=False, **SHALLOW) for _ in range(2)]

    def work(place: int) -> bool:
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(host.generate(**inputs[place], **OPTIONS), expected[place]):
                    return False
                state = host.model.vision_tower(pictures[place]).last_hidden_state
                if not torch.equal(state, last[place]):
                    return False
        return True

    plugins: list[DepthPlugin] = [attach(host, head, trim=True) for head in heads]
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        assert all(plugin.trim is not None and plugin.trim.passes == 20 for plugin in plugins)
    finally:
        for plugin in plugins:
            plugin.detach()
    assert all("forward" not in vars(block) for block in plugins[0].tower.blocks)


def test_a_copy_made_in_the_middle_of_a_trimmed_pass_has_all_its_blocks(
    make_head: MakeHead,
) -> None:
    case = BY_NAME["llava"]
    assert case.inputs is not None
    with trimmed(case, make_head) as (host, plugin, _):
        first, last = plugin.tower.blocks[0], plugin.tower.blocks[3]
        own, twins = first.mlp.fc1.forward, []

        def copying(x: Any) -> Any:
            assert "forward" in vars(last)
            twins.append(copy.deepcopy(last))
            return own(x)

        first.mlp.fc1.forward = copying
        host.generate(**case.inputs(case.pixels()), **OPTIONS)
        x = torch.randn(1, 17, 32)
        with torch.no_grad():
            expected = tensors(last(x, None))
            assert twins
            assert all(torch.equal(tensors(twin(x, None))[0], expected[0]) for twin in twins)

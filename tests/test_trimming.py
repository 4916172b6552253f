"""attach(..., trim=True): blocks that nobody needs are left out, and nobody can tell."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.adapters.trim_proof import shows_tower
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


class Counting(TorchFunctionMode):
    """Notes which blocks' attention runs, from outside: what is on the blocks forbids trimming."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.ran: list[int] = []
        self.level_of: dict[int, int] = {}
        for level, block in enumerate(blocks, start=1):
            attention = next(m for n, m in block.named_children() if "attn" in n)
            inner = next(m for m in attention.modules() if isinstance(m, nn.Linear))
            self.level_of[id(inner.weight)] = level

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and id(args[1]) in self.level_of:
            self.ran.append(self.level_of[id(args[1])])
        return func(*args, **(kwargs or {}))


@contextmanager
def trimmed(case: HostCase, make_head: MakeHead, **options: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(host, plug-in, what the blocks' attention ran)."""
    host: Any = case.host()
    head = make_head(host, tower=case.choose, structural=False, **{**SHALLOW, **options})
    counting = Counting(choose_tower(host, case.choose).blocks)
    with counting, attach(host, head, tower=case.choose, trim=True) as plugin:
        yield host, plugin, counting.ran


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 1 and all(map(torch.equal, first, second))


def stand_ins(host: nn.Module) -> list[nn.Module]:
    """Modules whose forward is not their class's own."""
    # transformers before 5 leaves the class's own, bound, where it has recorded outputs.
    own = (m for m in host.modules() if "forward" in vars(m))
    return [m for m in own if getattr(m.forward, "__func__", None) is not type(m).forward]


def outputs(host: Any, **options: Any) -> list[Tensor]:
    """All that ``generate`` can be asked for."""
    asked = {"output_logits": True, "output_scores": True, "output_hidden_states": True}
    torch.manual_seed(5)
    return tensors(host.generate(**options, **asked, return_dict_in_generate=True))


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
    expected = outputs(alone, **inputs, **OPTIONS)
    with trimmed(case, make_head) as (host, plugin, ran):
        assert plugin.trim.plan.blocks == tuple(
            f"{plugin.tower.blocks_path}.{index}" for index in range(kept, 4)
        )
        assert same(outputs(host, **inputs, **OPTIONS), expected)
        assert sorted(set(ran)) == list(range(1, kept + 1))
        assert plugin.trim.passes == 1
        ran.clear()
        untrimmed = plugin(case.pixels()).detach()
        torch.testing.assert_close(plugin.depth, untrimmed, rtol=0, atol=1e-5)
        assert stand_ins(host) == []


def test_outputs_that_show_the_tower_are_not_trimmed(make_head: MakeHead) -> None:
    """Forwards whose outputs hold the tower's own, features asked for, and the tower itself."""
    case = BY_NAME["llava"]
    assert case.inputs is not None
    inputs, x = case.inputs(case.pixels()), case.pixels()
    plain: Any = case.host()
    shows = shows_tower(type(plain).__module__)
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
    assert stand_ins(host) == []


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
        # The attention mask; transformers 4 wants another.
        wanted = inspect.signature(last.forward).parameters.values()
        masks = [None for one in wanted if one.default is one.empty and one.kind < one.VAR_KEYWORD]
        x = torch.randn(1, 17, 32)
        with torch.no_grad():
            expected = tensors(last(x, *masks[1:]))
            assert twins
            assert all(torch.equal(tensors(twin(x, *masks[1:]))[0], expected[0]) for twin in twins)

"""Whatever could tell that blocks were left out keeps them running, and ``refused`` says what."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.skipping import Skip, Trimmed
from clipdepth_plugin.adapters.taps import Hook
from clipdepth_plugin.adapters.trim_proof import shows_tower
from tests.test_trimming import OPTIONS, outputs, same, stand_ins, trimmed
from tests.tiny.case import tensors
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
LLAVA = BY_NAME["llava"]
# Where a forward's outputs hold all that the tower gave, generate() hands them round.
SHOWS = shows_tower("transformers.models.llava.modeling_llava")


def prompt() -> dict[str, Any]:
    assert LLAVA.inputs is not None
    return LLAVA.inputs(LLAVA.pixels())


@contextmanager
def hooked(module: nn.Module) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def hooked_everywhere(host: Any) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    yield
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def block(host: Any, index: int = 3) -> Any:
    tower = host.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers[index]


def wrapped(function: Any) -> Any:
    """As a decorator of the user's would make it."""

    @functools.wraps(function)
    def seeing(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return seeing


class Users(nn.Module):
    """A module of the user's own inside a block."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.inner(x)
        return seen


@contextmanager
def with_users_module(owner: nn.Module) -> Iterator[None]:
    inner = owner.get_submodule("mlp")
    owner.add_module("mlp", Users(inner).eval())
    yield
    owner.add_module("mlp", inner)


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    module.train()
    yield
    module.eval()


@contextmanager
def compiled(module: nn.Module) -> Iterator[None]:
    module.compile(backend="eager")
    yield
    module._compiled_call_impl = None
    torch._dynamo.reset()


@contextmanager
def dispatched(module: nn.Module) -> Iterator[None]:
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(module, hooks.ModelHook())
    yield
    hooks.remove_hook_from_module(module)


def class_patched(kind: type) -> Any:
    return replaced(kind, "forward", wrapped(vars(kind)["forward"]))


def tower_of(host: Any) -> Any:
    return host.model.vision_tower


WATCHED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hook on the tower": (lambda host: hooked(tower_of(host)), "a hook on CLIPVision"),
    "hook on a block": (lambda host: hooked(block(host)), "a hook on CLIPEncoderLayer"),
    "hook in a block": (lambda host: hooked(block(host).mlp), "a hook on CLIPMLP"),
    "hook everywhere": (hooked_everywhere, "a global forward hook"),
    "a block's forward": (
        lambda host: replaced(block(host), "forward", wrapped(block(host).forward)),
        "something stands in for CLIPEncoderLayer.forward",
    ),
    "a linear map's forward": (
        lambda host: replaced(block(host).mlp.fc1, "forward", wrapped(block(host).mlp.fc1.forward)),
        "something stands in for Linear.forward",
    ),
    "the class of the blocks": (
        lambda host: class_patched(type(block(host))),
        "CLIPEncoderLayer is not of a library that is known",
    ),
    "the class of the tower": (
        lambda host: class_patched(type(tower_of(host))),
        "CLIPVisionModel is not of a library that is known",
    ),
    "a module of the user's": (
        lambda host: with_users_module(block(host)),
        "Users is not of a library that is known",
    ),
    "a compiled block": (lambda host: compiled(block(host)), "stands in for CLIPEncoderLayer"),
    "a compiled tower": (lambda host: compiled(tower_of(host)), "it is compiled"),
    "training": (in_training, "training mode"),
    "dropout in training": (lambda host: in_training(block(host).mlp), "training mode"),
    "accelerate": (lambda host: dispatched(block(host)), "accelerate moves CLIPEncoderLayer"),
}
# What is handed all that the tower gave, in releases where anything is.
TOLD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hook on the host": (hooked, "a hook on LlavaForConditionalGeneration"),
    "hook on its model": (lambda host: hooked(host.model), "a hook on LlavaModel"),
    "the host's forward": (
        lambda host: replaced(host, "forward", wrapped(host.forward)),
        "something stands in for LlavaForConditionalGeneration.forward",
    ),
    "how the host prepares inputs": (
        lambda host: replaced(
            host,
            "prepare_inputs_for_generation",
            wrapped(host.prepare_inputs_for_generation),
        ),
        "stands in for LlavaForConditionalGeneration.prepare_inputs_for_generation",
    ),
    "custom_generate": (
        lambda host: replaced(host, "options", {"custom_generate": type(host)._sample}),
        "custom_generate",
    ),
    "what the caller keeps": (
        lambda host: replaced(host, "options", {"mm_encoder_outputs": {}}),
        "the caller keeps mm_encoder_outputs",
    ),
}


@pytest.mark.parametrize("watch", WATCHED)
def test_whoever_looks_keeps_the_blocks_running(watch: str, make_head: MakeHead) -> None:
    look, why = WATCHED[watch]
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        expected = outputs(host, **prompt(), **OPTIONS)
        assert (4 in ran, plugin.trim.refused, plugin.trim.passes) == (False, None, 1)
        with look(host):
            ran.clear()
            assert same(outputs(host, **prompt(), **OPTIONS), expected)
            assert plugin.trim.passes == 1
            # A compiled tower can't be counted from outside.
            assert 4 in ran or watch == "a compiled tower"
            assert why in plugin.trim.refused
        ran.clear()
        outputs(host, **prompt(), **OPTIONS)
        assert (4 in ran, plugin.trim.refused, plugin.trim.passes) == (False, None, 2)
        plugin.detach()
        outputs(host, **prompt(), **OPTIONS)
        assert 4 in ran
        assert stand_ins(host) == []


@pytest.mark.parametrize("watch", TOLD)
def test_whoever_is_told_keeps_the_blocks_running(watch: str, make_head: MakeHead) -> None:
    look, why = TOLD[watch]
    with trimmed(LLAVA, make_head) as (host, plugin, ran), look(host):
        if watch == "what the caller keeps" and not SHOWS:
            return  # these releases know no such argument
        options = getattr(host, "options", {})
        host.generate(**prompt(), **OPTIONS, **options)
        assert (4 in ran) == SHOWS
        assert not SHOWS or why in plugin.trim.refused


def test_a_replica_is_not_trimmed(make_head: MakeHead) -> None:
    """As nn.DataParallel makes them: with our hooks, and blocks that are not ours to skip."""
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        own = tower_of(host)
        expected = host.generate(**prompt(), **OPTIONS)
        outer = own._replicate_for_data_parallel()
        host.model.add_module("vision_tower", outer)
        ran.clear()
        assert torch.equal(host.generate(**prompt(), **OPTIONS), expected)
        assert 4 in ran
        assert plugin.trim.refused == "a replica of the tower runs"
        host.model.add_module("vision_tower", own)


def test_a_deeper_plugin_keeps_what_it_reads(make_head: MakeHead) -> None:
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        other = make_head(host, context="mean", semantic_levels=(4, 3, 2, 1))
        with attach(host, other) as deep:
            host.generate(**prompt(), **OPTIONS)
            assert 4 in ran
            assert "a hook on CLIPEncoderLayer" in plugin.trim.refused
            assert deep.depth.isfinite().all()


def test_under_a_compiler_all_blocks_run(make_head: MakeHead) -> None:
    """What is compiled around generate() may compile what that calls, too."""
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        expected = host.generate(**prompt(), **OPTIONS)
        ran.clear()

        uncompiled: Any = torch.compiler.disable(host.generate)

        def ask() -> Any:
            return uncompiled(**prompt(), **OPTIONS)

        assert torch.equal(torch.compile(ask, backend="eager")(), expected)
        assert 4 in ran
        assert "torch.compile is at work" in plugin.trim.refused
    torch._dynamo.reset()


def test_more_is_left_out_never_than_planned(make_head: MakeHead) -> None:
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        host.generate(**prompt(), **OPTIONS, vision_feature_layer=-4)
        assert sorted(set(ran)) == [1, 2, 3]
        ran.clear()
        host.generate(**prompt(), **OPTIONS, vision_feature_layer=-1)
        assert 4 in ran
        assert plugin.trim.refused == "the host reads the last hidden state"


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True}], ids=str)
def test_other_ways_to_generate(options: dict[str, Any], make_head: MakeHead) -> None:
    expected = outputs(LLAVA.host(), **prompt(), **{**OPTIONS, **options})
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        assert same(outputs(host, **prompt(), **{**OPTIONS, **options}), expected)
        assert (plugin.trim.passes, 4 in ran) == (1, False)


def test_attention_maps_are_whole(make_head: MakeHead) -> None:
    def eager() -> Any:
        host: Any = LLAVA.host()
        host.set_attn_implementation("eager")
        return host

    asked = {"output_attentions": True, "return_dict_in_generate": True}
    expected = tensors(eager().generate(**prompt(), **OPTIONS, **asked))
    with trimmed(LLAVA, make_head) as (host, _, _):
        host.set_attn_implementation("eager")
        seen = tensors(host.generate(**prompt(), **OPTIONS, **asked))
        assert same(seen, expected)


@pytest.mark.parametrize("detach", [False, True])
def test_an_interrupt_in_a_trimmed_pass_leaves_nothing_behind(
    detach: bool, make_head: MakeHead
) -> None:
    """Torch calls no hook after an interrupt; the next pass in that thread has all its blocks."""
    plain: Any = LLAVA.host()
    with torch.no_grad(), trimmed(LLAVA, make_head) as (host, plugin, ran):
        first = block(host, 0).mlp.fc1

        def interrupt(x: Tensor) -> Tensor:
            assert stand_ins(host)
            raise KeyboardInterrupt

        first.forward = interrupt
        with pytest.raises(KeyboardInterrupt):
            host.generate(**prompt(), **OPTIONS)
        del first.forward
        if detach:
            plugin.detach()
            assert stand_ins(host) == []
        ran.clear()
        x = LLAVA.pixels()
        seen, expected = (tensors(one.model.vision_tower(x)) for one in (host, plain))
        assert same(seen, expected)
        assert 4 in ran
        assert stand_ins(host) == []
        if not detach:
            host.generate(**prompt(), **OPTIONS)
            assert plugin.trim.passes == 2


def test_detaching_in_the_middle_of_a_trimmed_pass(make_head: MakeHead) -> None:
    expected = outputs(LLAVA.host(), **prompt(), **OPTIONS)
    with trimmed(LLAVA, make_head) as (host, plugin, ran):
        second = block(host, 1).mlp.fc1
        own = second.forward

        def detaching(x: Tensor) -> Any:
            plugin.detach()
            return own(x)

        second.forward = detaching
        assert same(outputs(host, **prompt(), **OPTIONS), expected)
        del second.forward
        assert 4 not in ran
        assert stand_ins(host) == []
        hooks = [hook for m in host.modules() for hook in m._forward_hooks.values()]
        assert not any(isinstance(hook, Hook) for hook in hooks)
        outputs(host, **prompt(), **OPTIONS)
        assert 4 in ran


@pytest.mark.parametrize(
    ("output", "in_tuple"),
    [
        (torch.zeros(1), False),
        ((torch.zeros(1),), True),
        ((torch.zeros(1), torch.zeros(1)), None),
        ([torch.zeros(1)], None),
        ((None,), None),
    ],
    ids=str,
)
def test_a_block_that_returns_something_else_runs(output: Any, in_tuple: bool | None) -> None:
    """Only a tensor, alone or in a tuple of one, can be stood in for."""
    now = Trimmed(sys._getframe(), (block := nn.Identity(),))
    now.see(output)
    assert now.in_tuple is in_tuple
    skip = Skip(block, {threading.get_ident(): now})
    x = torch.ones(2)
    given = skip(x)
    assert (given is x) == (in_tuple is None)
    assert torch.equal(given[0] if in_tuple else given, x)

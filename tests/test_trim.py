"""attach(..., trim=True): the last blocks that neither host nor head reads are left out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.errors import HeadMismatchError
from tests.tiny.case import HostCase, tensors
from tests.tiny.table import BY_NAME

MakeHead = Callable[..., DepthHead]
# Level 2 of four is the deepest that the head reads.
SHALLOW: dict[str, Any] = {"context": "mean", "semantic_levels": (2, 2, 1, 1), "structural": False}
LAST = {"semantic_levels": (4, 3, 2, 1)}
READ_LEVEL_3 = (
    *("llava", "llava_next", "llava_next_video", "vip_llava"),
    *("video_llava_image", "video_llava_video"),
)


def outputs(host: Any, case: HostCase) -> list[Tensor]:
    """Logits of a prompt, and all that ``generate`` can be asked for."""
    assert case.inputs is not None
    inputs = case.inputs(case.pixels())
    with torch.no_grad():
        logits = host(**inputs).logits
        asked: dict[str, Any] = {"output_logits": True, "output_hidden_states": True}
        out = host.generate(
            **inputs, **asked, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
    return [logits, *tensors(out)]


@contextmanager
def ran(block: nn.Module) -> Iterator[list[bool]]:
    """Whether a block's attention runs inside."""
    seen: list[bool] = []
    inner = next(module for name, module in block.named_children() if "attn" in name)
    handle = inner.register_forward_hook(lambda *_: seen.append(True))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", READ_LEVEL_3)
def test_the_hosts_outputs_stay_the_same(name: str, make_head: MakeHead) -> None:
    case = BY_NAME[name]
    host: Any = case.host()
    expected = outputs(host, case)
    head = make_head(host, tower=case.choose, **SHALLOW)
    with attach(host, head, tower=case.choose) as plugin:
        outputs(host, case)
        depths = plugin.depths
    with attach(host, head, tower=case.choose, trim=True) as plugin:
        assert plugin.trim is not None
        assert plugin.trim.blocks == (f"{plugin.tower.blocks_path}.3",)
        with ran(plugin.tower.blocks[3]) as last, ran(plugin.tower.blocks[2]) as before:
            found = outputs(host, case)
        assert (last, bool(before)) == ([], True)
        assert all(map(torch.equal, plugin.depths, depths))
    with ran(plugin.tower.blocks[3]) as last:
        assert all(map(torch.equal, outputs(host, case), expected))
    assert last
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_who_reads_the_tower_gets_the_last_block_that_ran(make_head: MakeHead) -> None:
    case = BY_NAME["llava"]
    host: Any = case.host()
    with attach(host, make_head(host, **SHALLOW), trim=True) as plugin, torch.no_grad():
        assert "last_hidden_state" in str(plugin.trim)
        states = plugin.tower.module(case.pixels(), output_hidden_states=True).hidden_states
    assert len(states) == 5
    assert torch.equal(states[4], states[3])


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("paligemma", SHALLOW, "not known to read just hidden states"),
        ("hf_siglip_vision", SHALLOW, "not known to read just hidden states"),
        ("dinov2", SHALLOW, "no host is known"),
        ("llava_onevision", SHALLOW, "the host reads level 4"),
        ("aya_vision", SHALLOW, "the host reads level 4"),
        ("llava", {**SHALLOW, **LAST}, "the head level 4"),
        ("llava", {**SHALLOW, "context": "pooled"}, "the pooled vector"),
    ],
)
def test_nothing_is_left_out(
    name: str, options: dict[str, Any], why: str, make_head: MakeHead
) -> None:
    host = BY_NAME[name].host()
    with attach(host, make_head(host, **options), trim=True) as plugin:
        assert plugin.trim is not None
        assert plugin.trim.blocks == ()
        assert why in plugin.trim.why
        assert not any("forward" in vars(block) for block in plugin.tower.blocks)


def test_heads_that_need_the_block_are_refused(make_head: MakeHead) -> None:
    host = BY_NAME["llava"].host()
    shallow, deep = make_head(host, **SHALLOW), make_head(host, **{**SHALLOW, **LAST})
    with attach(host, shallow, trim=True), pytest.raises(HeadMismatchError, match="leaves out"):
        attach(host, deep)
    hooks = [len(module._forward_hooks) for module in host.modules()]
    with attach(host, deep), pytest.raises(HeadMismatchError, match="reads blocks that would be"):
        attach(host, shallow, trim=True)
    assert [len(module._forward_hooks) for module in host.modules()] == hooks


def unpickled(host: Any) -> Any:
    """A copy of a host by way of a pickle."""
    return pickle.loads(pickle.dumps(host))  # noqa: S301 (our own)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, unpickled])
def test_copies_run_all_blocks(twin_of: Callable[[Any], Any], make_head: MakeHead) -> None:
    case = BY_NAME["llava"]
    host: Any = case.host()
    with attach(host, make_head(host, **SHALLOW), trim=True):
        twin = twin_of(host)
    with torch.no_grad():
        states = (one.model.vision_tower(case.pixels())[0] for one in (host, twin))
        assert torch.equal(*states)

"""What a packed tower refuses, and that its arguments are read where it is compiled."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
import transformers

from clipdepth_plugin import attach, find_towers
from clipdepth_plugin.adapters.families.hf_qwen import QwenRule
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from tests.tiny.coordinates import (
    BEFORE_5_6,
    MakeHead,
    all_levels,
    close,
    present,
)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"window": None}, {"window": 1}, {"merge": 1}])
def test_an_order_that_the_positions_deny(change: dict[str, Any], make_head: MakeHead) -> None:
    case = present("qwen2_5_vl")
    host, inputs = case.host(), case.pack(case.pictures())
    with attach(host, all_levels(make_head, host, case)) as plugin:
        wanted = plugin._recorder.wanted
        rule = dataclasses.replace(cast("QwenRule", wanted.tower.rule), **change)
        plugin._recorder.wanted = dataclasses.replace(
            wanted, tower=dataclasses.replace(wanted.tower, rule=rule)
        )
        case.run(host, inputs)
        with pytest.raises(NoDepthError, match=r"view 0: the positions .* are not those of a grid"):
            _ = plugin.depths


def test_contexts_that_a_packed_tower_lacks(make_head: MakeHead) -> None:
    host = present("qwen2_vl").host()
    for context in ("pooled", "cls"):
        with pytest.raises(HeadMismatchError, match="this tower has 'mean'"):
            attach(host, make_head(host, context=context))


@torch.no_grad()
@pytest.mark.parametrize("name", ["idefics2", "siglip2", "mllama"])
def test_compiled_with_its_arguments_seen(name: str, make_head: MakeHead) -> None:
    """The hook on the tower is traced, too: no graph break, and padding is left out."""
    case = present(name)
    host, inputs = case.host(), case.pack(case.pictures())
    (tower,) = find_towers(host)
    tower.module.compile(backend="eager", fullgraph=True)
    try:
        case.run(host, inputs)
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError):
        assert BEFORE_5_6, "the newest compiles without us"
        pytest.skip(f"transformers {transformers.__version__} can't compile {name} whole itself")
    finally:
        tower.module._compiled_call_impl = None
        torch._dynamo.reset()
    with attach(host, all_levels(make_head, host, case)) as plugin:
        case.run(host, inputs)
        expected = plugin.depths
        tower.module.compile(backend="eager", fullgraph=True)
        case.run(host, inputs)
        close(plugin.depths, expected, 1e-5)
    torch._dynamo.reset()

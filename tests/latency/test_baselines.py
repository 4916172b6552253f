"""Baselines, built-in hosts and forms of a head: what is made and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from clipdepth_plugin import ClipDepthError, DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.loading.config import BUILT_IN
from clipdepth_plugin.adapters.towers import choose_tower, find_towers
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.baselines import (
    depth_anything_v2_small,
    has_prefill,
    prefill_baseline,
    tower_baseline,
)
from clipdepth_plugin.latency.forms import FORMS, choose_forms
from clipdepth_plugin.latency.inputs import random_inputs
from clipdepth_plugin.latency.resources import count_gflops, count_parameters

MakeHost = Callable[[str], nn.Module]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_a_prefill_takes_picture_and_prompt(name: str, make_host: MakeHost) -> None:
    model: Any = make_host(name)
    assert has_prefill(model)
    pixels_B3HW = random_inputs(choose_tower(model), 3).pixels
    baseline = prefill_baseline(model, pixels_B3HW, text_tokens=5)
    assert baseline.tokens == 16 + 5
    with torch.no_grad():
        out: Any = baseline.call()
    assert out.logits.shape[:2] == (3, 1)  # of the next token alone, as generate() asks


def test_a_host_without_a_language_model_has_none(make_host: MakeHost) -> None:
    model = make_host("hf_clip_vision")
    assert not has_prefill(model)
    with pytest.raises(BenchError, match="no image token in its config"):
        prefill_baseline(model, torch.zeros(1, 3, 32, 32))


def test_a_model_that_needs_more_than_a_prompt_is_refused_with_advice(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_host("llava")

    def wants_more(*args: Any, **kwargs: Any) -> None:
        raise TypeError("needs image_sizes")

    monkeypatch.setattr(model, "forward", wants_more)
    with pytest.raises(BenchError, match=r"needs image_sizes\); measure its tower"):
        prefill_baseline(model, torch.zeros(1, 3, 32, 32))


def test_a_tower_at_another_size(make_host: MakeHost) -> None:
    tower = choose_tower(make_host("hf_clip_vision"))
    larger: Any = tower_baseline(tower, random_inputs(tower, 1, (48, 64))).call()
    assert larger.last_hidden_state.shape[1] == 1 + 6 * 8
    dinov2 = choose_tower(make_host("dinov2"))
    assert dinov2.image_size not in (None, (48, 64))
    resized: Any = tower_baseline(
        dinov2, random_inputs(dinov2, 1, (48, 64))
    ).call()  # takes no argument
    assert resized.last_hidden_state.shape[1] == 1 + 6 * 8
    fixed = choose_tower(make_host("timm"))
    with pytest.raises(BenchError, match=r"made for .* can't be run at .*Error: .*give a size"):
        tower_baseline(fixed, random_inputs(fixed, 1, (48, 64)))


@pytest.mark.parametrize(
    ("name", "millions", "tower_millions"),
    [
        ("vit-b-16", 85.8, 85.8),
        ("vit-l-14-336", 303.5, 303.5),
        ("siglip-b-16", 92.9, 92.9),
        ("so400m-14", 427.7, 427.7),
        ("llava-small", 354.4, 85.8),
        ("paligemma-small", 370.0, 85.8),
    ],
)
def test_built_in_hosts_have_the_sizes_of_their_models(
    name: str, millions: float, tower_millions: float
) -> None:
    with torch.device("meta"):
        host = load_host(f"config:{name}")
        label, model = host.label, host.model
    assert label == BUILT_IN[name][0]
    (tower,) = find_towers(model)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
    assert count_parameters(tower.module) / 1e6 == pytest.approx(tower_millions, rel=0.01)


def test_an_unknown_built_in_host_is_refused() -> None:
    with pytest.raises(ClipDepthError, match=r"no such built-in config; there are config:vit-b-16"):
        load_host("config:vit-b-17")


def test_the_separate_network_has_the_size_of_the_published_one() -> None:
    with torch.device("meta"):
        assert count_parameters(depth_anything_v2_small()) == 24_785_089


def test_operations_of_a_product_and_of_attention() -> None:
    x = torch.randn(1, 2, 8, 16)
    assert count_gflops(lambda: x[0, 0] @ x[0, 0].T) == pytest.approx(2 * 8 * 8 * 16 / 1e9)
    attention = nn.functional.scaled_dot_product_attention
    assert count_gflops(lambda: attention(x, x, x)) == pytest.approx(2 * 2 * 2 * 8 * 8 * 16 / 1e9)


def test_on_a_cpu_compiling_needs_to_be_requested() -> None:
    assert choose_forms((), CPU) == ("eager", "fused")
    assert choose_forms(("compiled",), CPU) == ("compiled",)
    assert choose_forms((), torch.device("cuda")) == tuple(FORMS)


def test_a_form_that_the_device_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="'graph' was requested, but CUDA graphs need CUDA"):
        choose_forms(("eager", "graph"), CPU)
    with pytest.raises(BenchError, match="'jit': there are eager"):
        choose_forms(("jit",), CPU)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BenchError, match="needs a C\\+\\+ compiler"):
        choose_forms(("compiled",), CPU)


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_a_form_leaves_the_plain_head_alone(
    name: str, make_host: MakeHost, make_head: Callable[..., DepthHead]
) -> None:
    head = make_head(make_host("hf_clip_vision"))
    formed: Any = FORMS[name].make(head)
    assert formed is not head
    assert head._compiled_call_impl is None
    assert (formed._compiled_call_impl is not None) == (name == "compiled")
    assert torch.equal(*(next(h.parameters()) for h in (head, formed)))

"""DepthTower: the numbers of host and plug-in, and a host that is left as it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import ClipDepthError, DepthHead, DepthTower, attach
from clipdepth_plugin.adapters.traits import parameters_of
from clipdepth_plugin.errors import FeaturesError, HostError, ImageError, NoDepthError
from tests.tiny.case import HostCase, tensors
from tests.tiny.packed import PACKED
from tests.tiny.packed_case import PackedCase

MakeHead = Callable[..., DepthHead]
GUIDED: dict[str, Any] = {
    "preset": "guided", "channels": (8, 8, 8), "stem_channels": 4, "confidence": True,
    "canonical_focal": 37.3,
}  # fmt: skip


def equal(first: Tensor, second: Tensor) -> bool:
    """Bit for bit; NaN is NaN."""
    return torch.equal(first.nan_to_num(-1), second.nan_to_num(-1))


@torch.no_grad()
def test_the_numbers_are_those_of_host_and_plugin(case: HostCase, make_head: MakeHead) -> None:
    """Each output, with a constant picture and with cameras.

    Some processors round a product by 1e-7 otherwise where its weights require gradients.
    """
    host = case.host().requires_grad_(False)
    head = make_head(host, tower=case.choose, **GUIDED)
    x, focals = case.pixels(), [30.1, 55.7, 41.9][: case.views]
    x[-1] = 0.25
    focals = (focals * len(x))[: len(x)]
    depth_tower = DepthTower(
        host, head, case.choose, example=x[:1].expand_as(x), **case.tower_kwargs
    )
    with attach(host, head, tower=case.choose) as plugin:
        out = plugin.tower.module(x, **case.tower_kwargs)
        scaled_by_plugin = plugin.predict(focal_px=focals)
        assert isinstance(scaled_by_plugin, Tensor)
        expected = plugin.depth, plugin.confidence, scaled_by_plugin
        seen, depth, confidence = depth_tower(x)
        _, scaled, _ = depth_tower(x, torch.tensor(focals, dtype=torch.float64))
        assert equal(plugin.depth, expected[0])
    assert depth[-1].isnan().all()
    assert all(map(equal, (depth, confidence, scaled), expected))
    assert (*seen, "depth", "confidence") == depth_tower.output_names
    if all(name.startswith("hidden_states.") for name in seen):
        levels = case.levels(host, x)
        assert all(equal(value, levels[int(name.split(".")[1])]) for name, value in seen.items())
    else:
        assert all(map(equal, seen.values(), tensors(out)))


# RADIO's packed form is for hosts alone: plugin(pixels) does not take it, either.
ONE_OF_EACH = {case.family: case for case in PACKED if case.name != "radio_packed"}


@pytest.mark.parametrize("packed", ONE_OF_EACH.values(), ids=lambda case: case.name)
@torch.no_grad()
def test_packed_towers_take_their_grids_as_constants(
    packed: PackedCase, make_head: MakeHead
) -> None:
    host = packed.host()
    head, given = make_head(host, **{**GUIDED, "canonical_focal": None}), {}
    with attach(host, head) as plugin:
        tower = plugin.tower.module

        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            given.update({**dict(zip(parameters_of(tower), args, strict=False)), **kwargs})

        with tower.register_forward_pre_hook(see, with_kwargs=True):
            packed.run(host, packed.pack(packed.pictures([packed.tile or (4, 4)])))
        expected = torch.stack(plugin.depths)
    pixels, *_ = parameters_of(tower)
    example = given.pop(pixels)
    if packed.name == "kosmos2_5":
        with pytest.raises(HostError, match="no layout that a graph of constants could know"):
            DepthTower(host, head, example=example, **given)
        return
    depth_tower = DepthTower(host, head, example=torch.zeros_like(example), **given)
    assert equal(depth_tower(example)[1], expected)


def test_the_host_and_the_head_are_left_as_they_are(
    host: nn.Module, head: DepthHead, make_pixels: Callable[..., Tensor]
) -> None:
    host.train()
    modules = [(module, dict(vars(module))) for module in (*host.modules(), *head.modules())]
    before = torch.get_rng_state()
    depth_tower = DepthTower(host, head)
    assert torch.equal(torch.get_rng_state(), before)
    shared = {x.data_ptr() for x in (*host.parameters(), *head.parameters())}
    assert {x.data_ptr() for x in depth_tower.parameters()} <= shared
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in depth_tower.modules())
    depth = depth_tower(make_pixels())[1]
    assert not depth.requires_grad
    copied = copy.deepcopy(depth_tower)
    depth_tower.bfloat16()
    assert depth_tower(make_pixels())[1].isfinite().all()
    for module, attributes in modules:
        assert vars(module) == attributes
    assert {x.dtype for x in (*host.parameters(), *head.parameters())} == {torch.float32}
    assert equal(copied(make_pixels())[1], depth)


@torch.no_grad()
def test_a_plugin_on_the_host_sees_nothing_of_it(
    host: nn.Module, head: DepthHead, make_pixels: Callable[..., Tensor]
) -> None:
    """Made while another is attached, and run between the host's pass and its reading."""
    with attach(host, head) as plugin, plugin.capture() as seen:
        depth_tower = DepthTower(host, head)
        host(make_pixels())
        other = depth_tower(make_pixels(seed=2))[1]
        assert len(seen) == 1
        assert equal(plugin.depth, depth_tower(make_pixels())[1])
    assert equal(depth_tower(make_pixels(seed=2))[1], other)


@torch.no_grad()
def test_threads_do_not_mix(
    host: nn.Module, head: DepthHead, make_pixels: Callable[..., Tensor]
) -> None:
    depth_tower = DepthTower(host, head)
    expected = [depth_tower(make_pixels(seed=seed))[1] for seed in range(4)]
    wrong: list[int] = []

    def run(seed: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                depth = depth_tower(make_pixels(seed=seed))[1]
                wrong.extend([] if equal(depth, expected[seed]) else [seed])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


X = torch.zeros(2, 3, 32, 32)
Call = Callable[[nn.Module, DepthHead, DepthTower], object]
WRONG: dict[str, tuple[Call, type[ClipDepthError], str]] = {
    "another size": (
        lambda _, __, t: t(X[..., :24]), ImageError, r"made for \(1 or more, 3, 32, 32\)"
    ),
    "no picture": (lambda _, __, t: t(X[:0]), ImageError, "1 or more"),
    "no tensor": (lambda _, __, t: t([1]), ImageError, "expected a tensor"),
    "integers": (lambda _, __, t: t(X.long()), ImageError, "expected floats"),
    "not finite": (lambda _, __, t: t(X + torch.nan), NoDepthError, r"views \[0, 1\]"),
    "a number": (lambda _, __, t: t(X, 40.0), HostError, "expected a tensor of 2 focal"),
    "one camera of two": (lambda _, __, t: t(X, X[0, 0, 0, :1]), HostError, "tensor of 2 focal"),
    "no camera": (lambda _, __, t: t(X, torch.tensor([1.0, -3.0])), HostError, r"focal_px\[1\]"),
    "an example of no picture": (
        lambda host, head, _: DepthTower(host, head, example=X[0]), ImageError, "images, 3, H, W"
    ),
    "too few levels": (lambda _, __, t: t.level_head([X]), FeaturesError, "got 1 levels"),
    "no context": (
        lambda _, __, t: t.level_head([X[0, 0, :16, :].expand(2, 16, 32)] * 4),
        FeaturesError, "context",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(host: nn.Module, make_head: MakeHead, wrong: str) -> None:
    head = make_head(host, **GUIDED)
    call, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        call(host, head, DepthTower(host, head))


def test_a_camera_for_a_head_without_one(host: nn.Module, head: DepthHead) -> None:
    with pytest.raises(ClipDepthError, match="trained without a canonical camera"):
        DepthTower(host, head)(X + torch.rand(1), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("qwen2_vl", {}, r"not pictures of a known size: give DepthTower\(example=...\)"),
        ("qwen2_vl", {"example": torch.zeros(16, 384)}, "takes grid_thw beside pixels"),
        (
            "qwen2_vl",
            {"example": torch.zeros(24, 384), "grid_thw": torch.tensor([[1, 4, 4], [1, 2, 4]])},
            "views of one size; these are of several: 32 x 32, 16 x 32",
        ),
    ],
)
def test_packed_towers_say_what_they_need(
    name: str, given: dict[str, Any], message: str, make_head: MakeHead
) -> None:
    (packed,) = (case for case in PACKED if case.name == name)
    host = packed.host()
    with pytest.raises(HostError, match=message):
        DepthTower(host, make_head(host), **given)

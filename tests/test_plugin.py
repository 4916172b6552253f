"""DepthPlugin as a torch module: batches, sizes, leaving early, attached or not."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, attach
from clipdepth_plugin.errors import (
    HeadMismatchError,
    ImageError,
    NoDepthError,
)
from clipdepth_plugin.features import TowerFeatures, Views
from tests.tiny.open_clip_timm import timm_vit

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


def test_dropped_plugin_detaches(host: nn.Module, head: DepthHead) -> None:
    plugin = attach(host, head)
    assert host.encoder.layer[0]._forward_hooks  # type: ignore[index, union-attr]
    del plugin
    gc.collect()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.modules())


def test_plugins_parameters_are_the_heads(host: nn.Module, head: DepthHead) -> None:
    with attach(host, head) as plugin:
        assert {id(p) for p in plugin.parameters()} == {id(p) for p in head.parameters()}
        for copier in (copy.deepcopy, pickle.dumps):
            with pytest.raises(HeadMismatchError, match=r"save or copy plugin\.head"):
                copier(plugin)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_pixels_of_a_wrong_shape(shape: tuple[int, ...], host: nn.Module, head: DepthHead) -> None:
    with pytest.raises(ImageError, match=r"expected \(images, 3, H, W\)"):
        attach(host, head)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "of torch.uint8, expected floats"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "of torch.int64, expected floats"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.bool), "of torch.bool, expected floats"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), "of torch.complex64, expected floats"),
        (np.zeros((1, 3, 32, 32), dtype=np.float32), "is ndarray, expected a tensor"),
        ([[0.0]], "is list, expected a tensor"),
        (None, "is NoneType, expected a tensor"),
        (torch.zeros(1, 3, 7, 32), "smaller than the tower's patches of 8 x 8"),
        (torch.zeros(1, 3, 32, 5), "smaller than the tower's patches of 8 x 8"),
    ],
    ids=lambda value: str(getattr(value, "dtype", ""))[-10:],
)
def test_what_is_no_pixels(pixels: Any, message: str, host: nn.Module, head: DepthHead) -> None:
    plugin = DepthPlugin(host, head)
    for call in (plugin, plugin.features):
        with pytest.raises(ImageError, match=message):
            call(pixels)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch(batch: int, host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head) as plugin:
        assert plugin(make_pixels(batch=batch)).shape == (batch, 1, 32, 32)


def test_other_input_sizes(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    """A tower that takes any size, not square and not a multiple of the patch."""
    with attach(host, head) as plugin, plugin.capture() as seen, torch.no_grad():
        host(make_pixels(size=(40, 67)))
        assert seen[0].views == (Views(2, (5, 8), (40, 67)),)
        assert plugin.depth.shape == (2, 1, 40, 67)


def test_a_picture_one_patch_high(
    head: DepthHead, host: nn.Module, make_pixels: MakePixels
) -> None:
    """A tower that takes neither mask nor packing cuts it by itself, whatever its shape."""
    strip = make_pixels(size=(8, 32))
    with attach(host, head) as plugin, torch.no_grad():
        host(strip)
        assert plugin.depth.shape == (2, 1, 8, 32)
        torch.testing.assert_close(plugin.depth, plugin(strip))


def test_features_of_no_picture(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """As those of some, but for their number."""
    host = make_host("hf_clip_vision")
    head = make_head(host, preset="guided", channels=(8, 8, 8), film_hidden=8)
    with attach(host, head) as plugin:
        some, none = (plugin.features(make_pixels(batch=count)) for count in (2, 0))
        assert isinstance(some, TowerFeatures)
        assert isinstance(none, TowerFeatures)
        assert none.grid == some.grid
        assert none.levels.keys() == some.levels.keys()
        pairs: list[Any] = [(none.levels[k], x) for k, x in some.levels.items()]
        pairs += [(none.context, some.context), (none.pixels, some.pixels)]
        for empty, full in pairs:
            assert empty is not None
            assert full is not None
            assert empty.shape == (0, *full.shape[1:])
        assert head(none).shape == (0, *head(some).shape[1:])


def test_a_host_that_never_pools(make_head: MakeHead, make_pixels: MakePixels) -> None:
    class Reader(nn.Module):
        """Reads timm's tokens, as many a VLM does."""

        def __init__(self) -> None:
            super().__init__()
            self.vision: Any = timm_vit()()

        def forward(self, x: Tensor) -> Tensor:
            tokens: Tensor = self.vision.forward_features(x)
            return tokens

    host = Reader().eval()
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        host(make_pixels())
        with pytest.raises(NoDepthError, match=r"never pools .* context='mean'"):
            _ = plugin.depth
    with torch.no_grad(), attach(host, make_head(host, context="mean")) as plugin:
        host(make_pixels())
        assert plugin.depth.shape == (2, 1, 32, 32)


def test_tower_leaves_no_later_than_needed(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    host: Any = make_host("timm")
    ran: list[int] = []
    for i, block in enumerate(host.blocks, start=1):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    shallow = {"semantic_levels": (2, 2, 1, 1), "structural_levels": (1, 1, 0)}
    plugin = attach(host, make_head(host, context="mean", **shallow))
    plugin(make_pixels())
    assert ran == [1, 2]
    ran.clear()
    host(make_pixels())
    assert ran == [1, 2, 3, 4]
    plugin.detach()
    ran.clear()
    attach(host, make_head(host, context="pooled", **shallow))(make_pixels())
    assert ran == [1, 2, 3, 4]


def test_a_tower_that_is_offloaded_later_is_no_longer_left_early(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """What was looked up at the first call is looked up anew where a module has changed."""
    host: Any = make_host("timm")
    ran: list[int] = []
    host.blocks[3].register_forward_hook(lambda *_: ran.append(4))
    shallow = {"semantic_levels": (2, 2, 1, 1), "structural_levels": (1, 1, 0)}
    plugin = DepthPlugin(host, make_head(host, context="mean", **shallow))
    plugin(make_pixels())
    assert ran == []
    host.blocks[1].mlp._hf_hook = object()
    plugin(make_pixels())
    assert ran == [4]
    del host.blocks[1].mlp._hf_hook
    plugin(make_pixels())
    assert ran == [4]
    host.blocks[1].mlp = torch.compile(host.blocks[1].mlp, backend="eager")
    plugin(make_pixels())
    assert ran == [4, 4]
    torch._dynamo.reset()


def test_plugin_without_attaching(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = DepthPlugin(host, head)
    assert not plugin.attached
    assert plugin(make_pixels()).shape == (2, 1, 32, 32)
    with pytest.raises(NoDepthError):
        _ = plugin.depth

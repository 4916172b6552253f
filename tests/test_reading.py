"""Reading depth: which pass, once, without a graph; tokens freed, kept, spoilt or not there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, DepthPlugin, HeadConfig, attach, find_towers
from clipdepth_plugin.errors import (
    HeadMismatchError,
    HostError,
    ImageError,
    NoDepthError,
)
from clipdepth_plugin.features import one_size
from tests.tiny.open_clip_timm import timm_vit

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


def test_no_pass_yet_and_after_attaching_again(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    plugin = attach(host, head)
    with pytest.raises(NoDepthError, match="no tower pass in this thread"):
        _ = plugin.depth
    host(make_pixels())
    depth = plugin.depth
    plugin.detach()
    host(make_pixels(seed=9))
    assert torch.equal(plugin.depth, depth)  # what was read stays
    with plugin.attach(), pytest.raises(NoDepthError, match="no tower pass"):
        _ = plugin.depth


def test_reading_again_gives_the_same_maps_and_tokens_are_freed(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    runs: list[None] = []
    head.register_forward_hook(lambda *_: runs.append(None))
    with attach(host, head) as plugin, plugin.capture() as seen:
        host(make_pixels())
        tokens = weakref.ref(one_size(seen[0].features).levels[4].untyped_storage())
        first = plugin.depth
        gc.collect()
        assert tokens() is None
        assert torch.equal(plugin.depth, first)
        assert torch.equal(seen[0].depth, first)
        assert runs == [None]
        with pytest.raises(NoDepthError, match="freed when this pass's depth was read"):
            _ = seen[0].features


def test_only_wanted_levels_are_kept_and_the_last_pass_goes(
    host: nn.Module, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    head = make_head(host, semantic_levels=(4, 4, 2, 2), structural=False)
    with attach(host, head) as plugin:
        host(make_pixels())
        first = plugin._pass()
        assert sorted(first.levels) == [2, 4]
        old = weakref.ref(first)
        del first
        host(make_pixels())
        gc.collect()
        assert old() is None


def test_training_mode_is_not_read(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    with attach(host, head) as plugin:
        host(make_pixels())
        plugin.train()
        before = {k: x.clone() for k, x in head.state_dict().items()}
        with pytest.raises(HeadMismatchError, match="in training mode"):
            _ = plugin.depth
        assert all(torch.equal(x, before[k]) for k, x in head.state_dict().items())
        plugin.eval()
        assert plugin.depth.shape == (2, 1, 32, 32)


def test_non_finite_depth_names_the_views(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    odd = make_pixels(batch=3)
    odd[1, 0, 5, 5] = torch.nan
    with attach(host, head) as plugin:
        host(odd)
        with pytest.raises(NoDepthError, match=r"views \[1\] is not finite"):
            _ = plugin.depth
        with pytest.raises(ImageError, match=r"images \[1\] are not finite"):
            plugin(odd)


def test_a_module_checks_its_depth_too(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    """Weights that overflow, in evaluation mode; who trains sees it in the loss."""
    with torch.no_grad():
        next(head.parameters()).fill_(torch.inf)
    plugin = DepthPlugin(host, head)
    with torch.no_grad(), pytest.raises(NoDepthError, match=r"views \[0, 1\] is not finite"):
        plugin(make_pixels())
    assert not plugin(make_pixels()).isfinite().any()
    with torch.no_grad():
        assert not plugin.train()(make_pixels()).isfinite().any()


@pytest.mark.parametrize("path", ["", "trunk"])
@pytest.mark.parametrize("wrong", [(2, 3, 10), (2, 1, 32, 32)], ids=["before", "in the embedding"])
def test_a_pass_that_never_began_leaves_no_old_map(
    path: str,
    wrong: tuple[int, ...],
    make_host: MakeHost,
    make_head: MakeHead,
    make_pixels: MakePixels,
) -> None:
    tower = make_host("timm")
    host = nn.ModuleDict({"trunk": tower}) if path else tower
    with torch.no_grad(), attach(host, make_head(host)) as plugin:
        tower(make_pixels())
        expected = plugin.depth
        plugin(make_pixels(seed=5))  # a caller's own run is no pass of the host's
        assert torch.equal(plugin.depth, expected)
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            tower(torch.zeros(wrong))
        with pytest.raises(NoDepthError, match="an error ended it"):
            _ = plugin.depth
        tower(make_pixels())
        assert torch.equal(plugin.depth, expected)


def test_confidence_beside_depth(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    options: dict[str, Any] = {"channels": (8, 8, 8), "confidence": True, "confidence_scale": 3.0}
    sure = DepthHead.for_host(host, "fast", **options).eval()
    with attach(host, sure) as plugin, plugin.capture() as seen:
        host(make_pixels())
        features = one_size(seen[0].features)
        confidence, depth = plugin.confidence, plugin.depth
        expected = sure.forward_with_confidence(features, (32, 32))
        torch.testing.assert_close((depth, confidence), expected)
        assert [tuple(one.shape) for one in plugin.confidences] == [(1, 32, 32)] * 2
        confidence.zero_()  # the caller's own
        assert plugin.confidence.min() > 0
        torch.testing.assert_close(plugin.predict_confidence(), plugin.confidence, rtol=0, atol=0)
        larger = plugin.predict_confidence((48, 80))
        torch.testing.assert_close(larger, sure.forward_with_confidence(features, (48, 80))[1])
        with torch.inference_mode():
            host(make_pixels())
            read = (plugin.confidence, plugin.predict_confidence((48, 80)), plugin.depth)
        assert not any(isinstance(one, Tensor) and one.is_inference() for one in read)
        with pytest.raises(HostError, match="give one"):
            plugin.predict_confidence((48, 80), original_sizes=(48, 80))
    with attach(host, head) as plugin:
        host(make_pixels())
        for ask in (lambda: plugin.confidence, plugin.predict_confidence):
            with pytest.raises(HeadMismatchError, match="predicts no confidence"):
                ask()


def test_pixels_are_tapped_for_heads_that_ask(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    guided = DepthHead.for_host(host, "guided", channels=(8, 8, 8), stem_channels=4).eval()
    with attach(host, guided) as plugin, plugin.capture() as seen:
        host(make_pixels())
        features = one_size(seen[0].features)
        assert features.pixels is not None
        assert torch.equal(features.pixels, make_pixels())
        expected = guided(features, (32, 32))
        torch.testing.assert_close(plugin.depth, expected, rtol=0, atol=0)
        assert seen[0]._pixels is None
        x = make_pixels(seed=8)
        host(x)
        x.zero_()  # a robot's camera buffer, used again
        with pytest.raises(NoDepthError, match="pixels were written into in place"):
            _ = seen[1].features
    assert one_size(attach(host, head).features(make_pixels())).pixels is None


def test_tokens_written_in_place_are_noticed(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    def spoil(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].mul_(2)

    with torch.no_grad(), attach(host, head) as plugin:
        clean = plugin(make_pixels())
        (tower,) = find_towers(host)
        handle = tower.blocks[3].register_forward_pre_hook(spoil)
        host(make_pixels())
        with pytest.raises(NoDepthError, match="written into in place"):
            _ = plugin.depth
        handle.remove()
        with torch.inference_mode():  # copies are kept there: level 3 is the unspoilt one
            host(make_pixels())
        torch.testing.assert_close(plugin.depth, clean)


def test_depth_is_the_callers_to_write_into(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    wide = DepthHead(
        HeadConfig(
            **{**head.config.model_dump(), "channels": (16, 8, 8)[:3]}
            | {"semantic_levels": (4, 3, 2), "structural_levels": (2, 1)}
        )
    ).eval()
    with attach(host, wide) as plugin:  # native size is the input's: nothing is resized
        host(make_pixels())
        before = plugin.depth.clone()
        plugin.depth.mul_(2)
        sized = plugin.predict((32, 32))
        assert isinstance(sized, Tensor)
        sized.mul_(2)
        assert torch.equal(plugin.depth, before)


def test_pixels_beyond_the_last_patch_repeat_and_do_not_stretch(
    host: nn.Module, head: DepthHead, make_pixels: MakePixels
) -> None:
    x = make_pixels(size=(40, 71))
    with torch.no_grad(), attach(host, head) as plugin:
        host(x[..., :64])
        whole = plugin.depth
        host(x)
        assert plugin.depth.shape == (2, 1, 40, 71)
        torch.testing.assert_close(plugin.depth[..., :64], whole)
        torch.testing.assert_close(plugin.depth[..., 64:], whole[..., -1:].expand(-1, -1, -1, 7))
        torch.testing.assert_close(plugin(x), plugin.depth)


@pytest.mark.parametrize("size", [(40, 35), (32, 33), (37, 32)])
@pytest.mark.parametrize("guided", [False, True])
def test_what_a_patch_embedding_pads_is_no_part_of_the_map(
    size: tuple[int, int], guided: bool, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """With timm's ``dynamic_img_pad`` maps are those of the padded picture, cut to the picture."""
    host = timm_vit(dynamic_img_size=True, dynamic_img_pad=True)().eval()
    small = {"preset": "guided", "channels": (8, 8, 8), "stem_channels": 4, "film_hidden": 16}
    head = make_head(host, **small) if guided else make_head(host)
    x = make_pixels(size=size)
    height, width = size
    padded = F.pad(x, (0, -width % 8, 0, -height % 8))
    with torch.no_grad(), attach(host, head) as plugin:
        host(padded)
        assert plugin.depth.shape[-2:] == padded.shape[-2:]
        expected = plugin.depth[..., :height, :width]
        host(x)
        assert torch.equal(plugin.depth, expected)
        sized = plugin.predict(size=size)
        assert isinstance(sized, Tensor)
        assert torch.equal(sized, expected)
        torch.testing.assert_close(plugin(x), expected)


def test_head_on_another_device(host: nn.Module, head: DepthHead, make_pixels: MakePixels) -> None:
    with attach(host, head.to("meta")) as plugin:
        host(make_pixels())
        for read in (lambda: plugin.depth, lambda: plugin(make_pixels())):
            with pytest.raises(HeadMismatchError, match=r"head is on meta.*head\.to\('cpu'\)"):
                read()


def test_token_count_that_the_adapter_does_not_know(
    make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    """A host that drops tokens on the way (here before block 2) is not read wrongly."""
    host: Any = make_host("timm")
    with attach(host, make_head(host)) as plugin:
        host.blocks[1].register_forward_pre_hook(lambda _m, args: (args[0][:, :-3],))
        host(make_pixels())
        with pytest.raises(NoDepthError, match=r"level 2 came as \(2, 14, 32\), expected"):
            _ = plugin.depth

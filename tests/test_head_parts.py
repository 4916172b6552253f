"""The parts of the heads, one by one: stem, attention, convex upsampling, bins, FiLM."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.config import Activation
from clipdepth_plugin.decoders.convex import convex_upsample, convex_weights, spline_logits
from clipdepth_plugin.decoders.guided import (
    ImageStem,
    PatchAttention,
    PixelLikeness,
    even_pixels,
    pixel_blocks,
)
from clipdepth_plugin.decoders.pathways import FiLM
from clipdepth_plugin.decoders.readout import DepthActivation
from tests.tiny.depth_heads import (
    GUIDED,
    make_features,
    make_head,
)


@pytest.mark.parametrize("activation", ["relu", "softplus", "log", "bins"])
def test_autocast_leaves_the_activation_alone(activation: Activation) -> None:
    to_depth = DepthActivation(activation, (0.05, 20.0))
    logits_BCHW = torch.randn(
        2, to_depth.channels, 5, 7, generator=torch.Generator().manual_seed(0)
    )
    expected_B1HW = to_depth(to_depth.to_level(logits_BCHW))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_depth(to_depth.to_level(logits_BCHW)), expected_B1HW)


def test_the_stem_sees_single_pixels() -> None:
    """A pixel changes the depth of the patches around its own, and none far away."""
    head = make_head(**GUIDED, likeness_channels=0)
    features = make_features(head.config, (3, 9), batch=1)
    assert features.pixels is not None
    pixels = features.pixels.clone()
    pixels[:, :, 20, 72] += 5.0
    changed = dataclasses.replace(features, pixels=pixels)
    with torch.no_grad():
        torch.testing.assert_close(head(changed), head(features), rtol=0, atol=0)  # at first
        torch.nn.init.normal_(head.get_parameter("decoder.guidance.smooth.conv.weight"))
        moved = (head(changed) - head(features)).abs()[0, 0] > 1e-6
    columns = moved.nonzero()[:, 1]
    assert bool(moved[20, 72])
    # The stem sees 8 pixels to either side, so it reaches 3 patches and, around them, 5 (pixels 32
    # to 111); then come convolutions and the mixing.
    assert 32 - 20 <= int(columns.min()) < 64
    assert 80 < int(columns.max()) <= 111 + 20


def test_the_stems_first_convolution_is_one_of_blocks() -> None:
    """And a module that is called as such, so that hooks and reparametrisations see it."""
    torch.manual_seed(0)
    stem = ImageStem(5, "batch").eval()
    even = even_pixels(torch.randn(2, 3, 28, 42), (2, 3))
    seen: list[torch.Tensor] = []
    stem.first.conv.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    stem(even)
    expected = F.conv2d(pixel_blocks(even), stem.first.conv.weight, padding=1)
    torch.testing.assert_close(seen[0], expected)


def test_nothing_looks_like_an_embedding_of_zeros_in_half_precision() -> None:
    attention = PatchAttention(1, 1, 4).half()
    for parameter in attention.embed.parameters():
        torch.nn.init.zeros_(parameter)
    out = attention(torch.ones(1, 1, 1, 2).half(), torch.ones(1, 4, 4, 8).half())
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_a_pixel_leans_to_the_blocks_that_look_like_it(autocast: bool) -> None:
    """Left of an edge inside a block to the left one, right of it to the right one.

    Logits are minus squared distances, but for what a pixel's blocks share; under autocast, where
    the embedding is of half precision, they are still those of float32.
    """
    torch.manual_seed(0)
    likeness = PixelLikeness(5)
    pixels = torch.zeros(1, 3, 16, 32)
    pixels[..., 18:] = 1.0  # the edge is in the middle of the fifth block of a row
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = likeness(pixels).unflatten(1, (9, 16))  # B K R H W
        embedded = likeness.embed(pixels).float()
    assert logits.dtype == torch.float32
    left, right = logits[0, 3, :, 1, 4], logits[0, 5, :, 1, 4]
    column = torch.arange(16) % 4
    assert bool((left > right)[column == 0].all())
    assert bool((left < right)[column == 3].all())
    blocks = F.avg_pool2d(embedded, 4)
    near = torch.stack([blocks[0, :, y, x] for y in (0, 1, 2) for x in (3, 4, 5)])  # K E
    own = embedded[0, :, 4:8, 16:20].flatten(1).T  # R E
    distance = (near[:, None] - own[None]).square().sum(-1)
    expected = own.square().sum(-1) - distance
    torch.testing.assert_close(logits[0, :, :, 1, 4], expected, rtol=0, atol=1e-5)


def test_patches_that_look_alike_are_mixed() -> None:
    """Left of an edge inside a patch come the left patch's values, right of it the right one's."""
    torch.manual_seed(0)
    attention = PatchAttention(1, 1, 4)
    image = torch.randn(1, 4, 1, 1).expand(1, 4, 4, 12).clone()
    image[..., 6:] = torch.randn(4, 1, 1)
    with torch.no_grad():
        attention.log_sharpness.fill_(6.0)
        torch.nn.init.ones_(attention.to_value.weight)
        assert attention.to_value.bias is not None
        torch.nn.init.zeros_(attention.to_value.bias)
        out = attention(torch.tensor([[[[1.0, 5.0, 2.0]]]]), image)
    assert out.shape == (1, 1, 4, 12)
    torch.testing.assert_close(out[0, 0, 0, 4:8], torch.tensor([1.0, 1.0, 2.0, 2.0]))


def test_convex_upsampling_mixes_neighbours_only() -> None:
    """Flat stays flat to the border; outputs stay between their neighbours' extremes."""
    torch.manual_seed(0)
    weights = convex_weights(torch.randn(1, 9 * 16, 3, 5))
    flat = convex_upsample(torch.full((1, 1, 3, 5), 2.5), weights)
    torch.testing.assert_close(flat, torch.full((1, 1, 12, 20), 2.5))
    coarse = torch.randn(1, 1, 3, 5)
    fine = convex_upsample(coarse, weights)
    highest = torch.nn.functional.max_pool2d(coarse, 3, stride=1, padding=1)
    assert bool((fine <= highest.repeat_interleave(4, 2).repeat_interleave(4, 3) + 1e-6).all())


@pytest.mark.parametrize("factor", [2, 4])
def test_a_plane_stays_plane_before_a_mask_is_learnt(factor: int) -> None:
    y_H1, x_W = torch.arange(7.0)[:, None], torch.arange(9.0)
    logits = spline_logits(factor)[:, None, None].expand(1, -1, 7, 9)
    plane_B1HW = (3 + 2 * y_H1 - 0.5 * x_W)[None, None]
    fine = convex_upsample(plane_B1HW, convex_weights(logits))
    inner_HW = fine[0, 0, factor:-factor, factor:-factor]
    for axis, slope in ((0, 2.0), (1, -0.5)):
        steps = inner_HW.diff(dim=axis)
        torch.testing.assert_close(steps, torch.full_like(steps, slope / factor))


def test_a_new_heads_map_of_even_tokens_shows_no_grid() -> None:
    """Neither of patches nor of the four positions in each; borders are padded."""
    head = DepthHead(HeadConfig(width=8, preset="fast", channels=(8, 8, 8))).eval()
    even_BND = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 144, 8)
    levels = dict.fromkeys(head.config.levels, even_BND)
    with torch.no_grad():
        inner_HW = head(TowerFeatures(levels, even_BND[:, 0], (12, 12)))[0, 0, 80:-80, 80:-80]
    torch.testing.assert_close(inner_HW, inner_HW.mean().expand_as(inner_HW))


def test_bins_give_the_expected_log_depth() -> None:
    to_depth = DepthActivation("bins", (0.5, 8.0))
    logits_BCHW = torch.full((1, to_depth.channels, 1, 1), -1e4)
    logits_BCHW[0, [0, -1]] = 0.0  # half of it at either end
    level = to_depth.to_level(logits_BCHW)
    torch.testing.assert_close(to_depth(level), torch.full((1, 1, 1, 1), 2.0))


def test_film_is_the_plain_factor() -> None:
    """Gamma multiplies as it is (not 1 + gamma): with a zero MLP nothing passes."""
    film = FiLM(4, 3)
    for parameter in film.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(film(torch.randn(2, 5, 4), torch.randn(2, 4)), torch.zeros(2, 5, 4))

"""Tiles lie where the host's own image processor cuts them, and their maps become one map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.preprocessing import from_processor
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.geometry import ViewGeometry
from clipdepth_plugin.stitching import stitch
from clipdepth_plugin.tiling import views_of

TILE = 32
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32]]
SIZES = [(32, 64), (50, 100), (101, 33), (64, 64), (17, 90), (200, 150), (31, 47), (33, 34)]


def llava_next(**options: Any) -> Any:
    from transformers import LlavaNextImageProcessor

    square = {"height": TILE, "width": TILE}
    return LlavaNextImageProcessor(
        **{
            "size": {"shortest_edge": TILE},
            "crop_size": square,
            "image_grid_pinpoints": PINPOINTS,
            "resample": 2,  # bilinear: a ramp stays a ramp
            **options,
        }
    )


def ramps(size: tuple[int, int]) -> Tensor:
    """(3, H, W): x and y as shares of the picture, and 1 where there is a picture at all."""
    height, width = size
    y_HW = ((torch.arange(height) + 0.5) / height)[:, None].expand(size)
    x_HW = ((torch.arange(width) + 0.5) / width)[None].expand(size)
    return torch.stack([x_HW, y_HW, torch.ones(size)])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_lie_where_the_processor_cuts_them(size: tuple[int, int]) -> None:
    processor = llava_next()
    out = processor([ramps(size)], do_rescale=False, do_normalize=False, return_tensors="pt")
    seen_V3HW = out["pixel_values"][0]
    views = views_of(size, from_processor(processor))
    assert len(views) == len(seen_V3HW)
    for view, seen_3HW in zip(views, seen_V3HW, strict=True):
        assert view.view_size == (TILE, TILE)
        inside_HW = expected_inside(view)
        torch.testing.assert_close(seen_3HW[2], inside_HW.float(), rtol=0, atol=1e-5)
        # Filters end at the picture's border; a pixel of the larger scale is the tolerance.
        for axis, channel in ((1, 0), (0, 1)):
            centres = torch.arange(TILE) + 0.5
            place = (centres - view.offset[axis]) / view.scale[axis] / size[axis]
            expected_HW = (
                place[None].expand(TILE, TILE) if axis else place[:, None].expand(TILE, TILE)
            )
            border = 1.5 * max(1.0, 1 / view.scale[axis]) / size[axis]
            clear_HW = inside_HW & (expected_HW > border) & (expected_HW < 1 - border)
            # An antialiasing filter's rounded weights move a ramp by up to a tenth of a pixel.
            torch.testing.assert_close(
                seen_3HW[channel][clear_HW], expected_HW[clear_HW], rtol=0, atol=0.1 / size[axis]
            )


def expected_inside(view: ViewGeometry) -> Tensor:
    """(H, W) whether a pixel of the view shows the image and not padding."""
    axes = []
    for axis in (0, 1):
        edges = torch.arange(TILE) + 0.5 - view.offset[axis]
        axes.append((edges > 0) & (edges < round(view.scale[axis] * view.image_size[axis])))
    return axes[0][:, None] & axes[1][None]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_of_a_smooth_map_become_that_map(size: tuple[int, int]) -> None:
    """Each tile with a scale of its own; the overview's is the image's."""
    views = views_of(size, from_processor(llava_next()))
    maps = []
    for index, view in enumerate(views):
        y = (torch.arange(TILE) + 0.5 - view.offset[0]) / view.scale[0] / size[0]
        x = (torch.arange(TILE) + 0.5 - view.offset[1]) / view.scale[1] / size[1]
        plane_1HW = (1 + 0.2 * y[:, None] + 0.3 * x[None])[None]
        maps.append(view.to_image(plane_1HW * (1 + index)))
    whole_1HW = stitch(maps[1:], maps[0])
    truth_1HW = (1 + 0.2 * ramps(size)[1] + 0.3 * ramps(size)[0])[None]
    torch.testing.assert_close(whole_1HW, truth_1HW, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"crop_size": {"height": 24, "width": 24}},  # tiles are cropped once more
        {"image_grid_pinpoints": [[40, 64]]},  # does not divide into tiles
    ],
)
def test_other_settings_are_not_known(options: dict[str, Any]) -> None:
    with pytest.raises(HostError, match="not known how this host resizes"):
        views_of((40, 50), from_processor(llava_next(**options)))


@pytest.fixture
def host() -> nn.Module:
    """A tiny LLaVA-NeXT."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    torch.manual_seed(0)
    model: nn.Module = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(
                **sizes, num_hidden_layers=4, image_size=TILE, patch_size=8
            ),
            text_config=LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=99, pad_token_id=0),
            image_token_index=90,
            image_grid_pinpoints=PINPOINTS,
        )
    )
    return model.eval()


def test_predict_gives_one_map_for_each_image(
    host: nn.Module, make_head: Callable[..., DepthHead]
) -> None:
    sizes = [(50, 100), (101, 33)]
    processor = llava_next()
    inputs = processor([ramps(size) for size in sizes], do_rescale=False, return_tensors="pt")
    head = make_head(host)
    canonical = DepthHead(head.config.model_copy(update={"canonical_focal": 40.0})).eval()
    canonical.load_state_dict(head.state_dict())
    host_any: Any = host
    with torch.no_grad(), attach(host, canonical, processor=processor) as plugin:
        host_any.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        maps = plugin.predict(original_sizes=sizes)
        views = plugin.depth
        near = plugin.predict(original_sizes=sizes, focal_px=[20.0, None])
        with pytest.raises(HostError, match=r"into \[3\] views, but this pass has 7"):
            plugin.predict(original_sizes=sizes[0])
        with pytest.raises(HostError, match="focal_px: 3 given for 2 images"):
            plugin.predict(original_sizes=sizes, focal_px=[1.0, 2.0, 3.0])
    counts = [len(views_of(size, from_processor(processor))) for size in sizes]
    assert len(views) == sum(counts)
    start = 0
    for size, one, count in zip(sizes, maps, counts, strict=True):
        assert one.shape == (1, *size)
        assert bool((one.isfinite() & (one > 0)).all())
        overview_1HW = ViewGeometry.to_image(
            views_of(size, from_processor(processor))[0], views[start]
        )
        assert (one.log() - overview_1HW.log()).median().abs() < 0.2  # the overview's scale
        start += count
    assert torch.equal(near[1], maps[1])
    # The overview is squashed by 32 / 50 and 32 / 100: its focal length in the view follows.
    factor = 20.0 * (TILE / 50 * TILE / 100) ** 0.5 / 40.0
    torch.testing.assert_close(near[0], maps[0] * factor)

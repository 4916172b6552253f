"""Tiles lie where the host's own image processor cuts them, and their maps become one map."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.stitching import stitch
from clipdepth_plugin.maps.tiling import RGB, arrange

TILE = 32
VIEW = (TILE, TILE)
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
def test_tiles_of_a_smooth_map_become_that_map(size: tuple[int, int]) -> None:
    """Each tile with a scale of its own; the overview's is the image's."""
    (views,) = (rule.views(size).views for rule in from_processor(llava_next()).rules)
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
        # Pieces that are left over become tiles of another size: the host itself fails.
        {"image_grid_pinpoints": [[40, 64]], "do_center_crop": False},
    ],
)
def test_other_settings_are_not_known(options: dict[str, Any]) -> None:
    with pytest.raises(HostError, match=r"no rule for size=.*crop_size=.*canvases"):
        arrange([(40, 50)], from_processor(llava_next(**options)).known_rules(), [VIEW])


def test_an_option_that_nobody_knows_is_named() -> None:
    given = {"image_mean": 0.5, "image_std": 0.5, "size": TILE, "do_fold": True, "folds": 0}
    known = from_processor({**given, "image_processor_type": "Origami"})
    with pytest.raises(HostError, match="no rule for Origami: do_fold=True"):
        arrange((40, 50), known.known_rules(), [VIEW])


def test_without_a_processor_it_is_asked_for() -> None:
    with pytest.raises(HostError, match=r"give attach\(..., processor=...\)"):
        arrange((40, 50), Preprocessing(*HALF_NORMALISATION, VIEW).known_rules(), [VIEW])


SQUARE = {"height": TILE, "width": TILE}


def onevision(**options: Any) -> Any:
    from transformers import LlavaOnevisionImageProcessor

    return LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS, **options)


@pytest.mark.parametrize(
    ("sizes", "views", "labels"),
    [
        ([(50, 100), (101, 33)], 7, "an overview and anyres tiles"),
        ([(50, 100), (101, 33)], 2, "padded to a square"),
        ((50, 100), 3, None),
        ([(50, 100)], 3, "an overview and anyres tiles"),
    ],
)
def test_the_number_of_views_says_what_the_host_did(
    sizes: Any, views: int, labels: str | None
) -> None:
    """OneVision tiles an image alone in its prompt; three views may be one image or three."""
    known = from_processor(onevision())
    if labels is None:
        with pytest.raises(HostError, match=r"3 views may be 1 images .* or 3 images padded"):
            arrange(sizes, known.known_rules(), [VIEW] * views)
        return
    (rule,) = (rule for rule in known.rules if rule.label == labels)
    assert arrange(sizes, known.known_rules(), [VIEW] * views) == [
        rule.views(size) for size in sizes
    ]


def test_frames_and_images_of_one_prompt_are_not_mixed_up() -> None:
    from transformers import LlavaOnevisionVideoProcessor

    both = SimpleNamespace(
        image_processor=onevision(), video_processor=LlavaOnevisionVideoProcessor(size=SQUARE)
    )
    with pytest.raises(HostError, match="the image processor or the video processor alone"):
        arrange((50, 100), from_processor(both).known_rules(), [VIEW] * 4)
    frames = arrange((50, 100), from_processor(both.video_processor).known_rules(), [VIEW] * 4)
    assert frames == [ImageViews((ViewGeometry.squashed((50, 100), VIEW),))] * 4
    # Of a square picture both make the same.
    assert len(arrange((50, 50), from_processor(both).known_rules(), [VIEW] * 4)) == 4


def test_one_picture_in_tiles_or_many_pictures_the_error_says_how_to_say_it() -> None:
    rules = from_processor(onevision()).known_rules()
    with pytest.raises(HostError) as caught:
        arrange((50, 100), rules, [VIEW] * 3)
    one, many = "original_sizes=[(50, 100)]", "original_sizes=[(50, 100)] * 3"
    assert f"{one} for one image, or {many} for 3 images" in str(caught.value)
    assert len(arrange([(50, 100)], rules, [VIEW] * 3)) == 1
    assert len(arrange([(50, 100)] * 3, rules, [VIEW] * 3)) == 3


class _HalfSize:
    """A host that takes pictures of any size, halved."""

    label: ClassVar[str] = "halved"
    pads_behind: ClassVar[bool] = False
    padding: ClassVar[RGB | None] = None

    def views(self, image_size: Size) -> ImageViews:
        half = image_size[0] // 2, image_size[1] // 2
        return ImageViews((ViewGeometry.squashed(image_size, half),))


@pytest.mark.parametrize("sizes", [(100, 50), [(100, 50)], [(100, 50), (60, 80)]], ids=str)
def test_width_and_height_swapped_are_said(sizes: Any) -> None:
    given = sizes if isinstance(sizes, list) else [sizes]
    seen = [(width // 2, height // 2) for height, width in given]
    with pytest.raises(HostError, match=r"swapped they fit: sizes are \(height, width\)"):
        arrange(sizes, [_HalfSize()], seen)
    with pytest.raises(HostError, match="very processor"):
        arrange(sizes, [_HalfSize()], [(7, 7)] * len(seen))


@pytest.mark.parametrize(
    ("sizes", "seen", "says"),
    [
        ([(50, 100)], [VIEW] * 2, r"2 views of \[\(32, 32\)\]; of images of \[\(50, 100\)\]"),
        ([(50, 100)], [VIEW] * 2, r"anyres tiles: \[3\] views of \[\(32, 32\)\]; or padded"),
        ([(50, 100)], [(32, 64)] * 3, r"3 views of \[\(32, 64\)\]"),
        ([(50, 50)] * 9, [VIEW] * 10, r"\[1, 1, 1, 1, 1, 1, 1, 1, ... 9 in all\]"),
    ],
)
def test_a_pass_that_does_not_fit_is_refused(sizes: Any, seen: list[Size], says: str) -> None:
    with pytest.raises(HostError, match=says):
        arrange(sizes, from_processor(onevision()).known_rules(), seen)


def test_smaller_pictures_of_a_batch_are_padded_behind() -> None:
    from transformers import PixtralImageProcessor

    known = from_processor(PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8))
    one, two = arrange([(16, 40), (64, 24)], known.known_rules(), [(64, 40)] * 2)
    assert (one.views[0].view_size, one.views[0].scale) == ((64, 40), (1, 1))
    assert two.views[0].intrinsics((9.0, 9.0, 3.0, 4.0)) == (9, 9, 3, 4)


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
        with pytest.raises(HostError, match=r"has 7 views .* any number of images of"):
            plugin.predict(original_sizes=sizes[0])
        with pytest.raises(HostError, match="focal_px: 3 given for 2 images"):
            plugin.predict(original_sizes=sizes, focal_px=[1.0, 2.0, 3.0])
    (rule,) = from_processor(processor).rules
    counts = [len(rule.views(size)) for size in sizes]
    assert len(views) == sum(counts)
    start = 0
    for size, one, count in zip(sizes, maps, counts, strict=True):
        assert one.shape == (1, *size)
        assert bool((one.isfinite() & (one > 0)).all())
        overview_1HW = rule.views(size).views[0].to_image(views[start])
        assert (one.log() - overview_1HW.log()).median().abs() < 0.2  # the overview's scale
        start += count
    assert torch.equal(near[1], maps[1])
    # The overview is squashed by 32 / 50 and 32 / 100: its focal length in the view follows.
    factor = 20.0 * (TILE / 50 * TILE / 100) ** 0.5 / 40.0
    torch.testing.assert_close(near[0], maps[0] * factor)

"""Views lie where the hosts' own image processors put them.

Each processor is given a picture whose pixels say where they are: x in red, y in green, and blue
wherever there is a picture and not padding. What comes out must say what the rule says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.pixels import normalised, part
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule
from tests.tiny.packed_case import before_5

T = 32  # a tile's side
SQUARE = {"height": T, "width": T}
# Bilinear, so that a ramp stays a ramp; black padding.
PLAIN = {"resample": 2, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
SIZES: tuple[Size, ...] = (
    *((32, 64), (50, 100), (101, 33), (64, 64), (34, 130), (200, 150), (47, 61), (40, 41)),
)


def _first(out: Any) -> Iterable[Tensor]:
    return cast("Iterable[Tensor]", out["pixel_values"][0])


def _all(out: Any) -> Iterable[Tensor]:
    return cast("Iterable[Tensor]", out["pixel_values"])


def _mllama(out: Any) -> Iterable[Tensor]:
    """Without the blank tiles behind."""
    return cast("Iterable[Tensor]", out["pixel_values"][0][0][: int(out["num_tiles"][0][0])])


def _qwen(out: Any) -> Iterable[Tensor]:
    """Patches in 2 x 2 merge order, each frame twice."""
    _, rows, columns = map(int, out["image_grid_thw"][0])
    image_3HW = rearrange(
        torch.as_tensor(out["pixel_values"]),
        "(h w mh mw) (c t ph pw) -> t c (h mh ph) (w mw pw)",
        h=rows // 2, w=columns // 2, mh=2, mw=2, t=2, c=3, ph=4, pw=4,
    )[0]  # fmt: skip
    return [image_3HW]


def _naflex(out: Any) -> Iterable[Tensor]:
    rows, columns = map(int, out["spatial_shapes"][0])
    patches = torch.as_tensor(out["pixel_values"])[0][: rows * columns]
    return [rearrange(patches, "(h w) (ph pw c) -> c (h ph) (w pw)", h=rows, w=columns, ph=8, pw=8)]


def _lfm2(out: Any) -> Iterable[Tensor]:
    """Rows of flattened patches, one for each view."""
    pack = "(h w) (ph pw c) -> c (h ph) (w pw)"
    for rows_ND, shape in zip(out["pixel_values"], out["spatial_shapes"], strict=True):
        h, w = map(int, shape)
        yield rearrange(torch.as_tensor(rows_ND)[: h * w], pack, h=h, w=w, ph=4, pw=4)


def _minicpm(out: Any) -> Iterable[Tensor]:
    """Patches of all views side by side."""
    strip_3HW = torch.as_tensor(out["pixel_values"])[0]
    for h, w in out["target_sizes"].tolist():
        view, strip_3HW = strip_3HW.tensor_split([h * w * 4], dim=2)
        yield rearrange(view, "c ph (h w pw) -> c (h ph) (w pw)", h=h, w=w, pw=4)


def _molmo2(out: Any) -> Iterable[Tensor]:
    pack = "v (h w) (ph pw c) -> v c (h ph) (w pw)"
    views = rearrange(torch.as_tensor(out["pixel_values"]), pack, h=8, w=8, ph=4, pw=4)
    return cast("Iterable[Tensor]", views)


@dataclass(frozen=True)
class Case:
    """One view rule of one image processor.

    Attributes:
        processor: Class name; the same with "Fast" and "Pil" is tried, too, where it exists.
        options: Its settings.
        rule: Which of the rules that are read from it.
        views: The (3, H, W) views of one image in its output.
        call: Options of the call.
        nest: How one image is given.
        sizes: (H, W) of the images that it is tried on, besides random ones.
    """

    name: str
    processor: str
    options: dict[str, Any]
    rule: int = 0
    views: Callable[[Any], Iterable[Tensor]] = _all
    call: dict[str, Any] | None = None
    nest: Callable[[Any], Any] = lambda image: [image]
    sizes: Sequence[Size] = SIZES


PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32]]
PIECES = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [40, 144]]}
ANYRES = {"image_grid_pinpoints": PINPOINTS}
SHORT = {"size": {"shortest_edge": T}, "crop_size": SQUARE}
IDEFICS3 = {"size": {"longest_edge": 4 * T}, "max_image_size": {"longest_edge": T}}
SCAN = {
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
LFM2 = {
    "encoder_patch_size": 4, "tile_size": T, "min_image_tokens": 8, "max_image_tokens": 40,
    "max_pixels_tolerance": 2.0, "max_tiles": 6,
}  # fmt: skip
MINICPM = {"scale_resolution": T, "patch_size": 4}
MOLMO2 = {"size": SQUARE, "patch_size": 4, "overlap_margins": [1, 1]}
CASES = [
    Case("clip", "CLIPImageProcessor", SHORT),
    Case("siglip-paligemma", "SiglipImageProcessor", {"size": SQUARE}),
    Case("blip-2", "BlipImageProcessor", {"size": SQUARE}),
    Case("llava-1.5-padded", "LlavaImageProcessor", {**SHORT, "do_pad": True}),
    Case("llava-next", "LlavaNextImageProcessor", {**SHORT, **ANYRES}, views=_first),
    Case("llava-next-pieces", "LlavaNextImageProcessor", {**SHORT, **PIECES}, views=_first),
    Case("llava-next-squashed-pieces", "LlavaNextImageProcessor",
         {"size": {"height": T, "width": 48}, "crop_size": {"height": T, "width": 48}, **PIECES},
         views=_first),
    Case("llava-next-enlarged-pieces", "LlavaNextImageProcessor",
         {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "do_center_crop": False, **ANYRES},
         views=_first),
    Case("onevision", "LlavaOnevisionImageProcessor", {"size": SQUARE, **ANYRES}, views=_first),
    Case(
        "onevision-among-others", "LlavaOnevisionImageProcessor", {"size": SQUARE, **ANYRES}, 1,
        _first, nest=lambda image: [[image, image]],
    ),
    Case(
        "internvl-ayavision", "GotOcr2ImageProcessor", {"size": SQUARE, "max_patches": 6},
        call={"crop_to_patches": True},
    ),
    Case("internvl-whole", "GotOcr2ImageProcessor", {"size": SQUARE}, 1),
    Case(
        "ovis2", "Ovis2ImageProcessor", {"size": SQUARE, "max_patches": 9},
        call={"crop_to_patches": True},
    ),
    Case(
        "ovis2-by-shape", "Ovis2ImageProcessor",
        {"size": SQUARE, "min_patches": 2, "max_patches": 6, "use_covering_area_grid": False},
        call={"crop_to_patches": True},
    ),
    Case("ovis2-whole", "Ovis2ImageProcessor", {"size": SQUARE}, 1),
    Case("cohere2-vision", "Cohere2VisionImageProcessor", {"size": SQUARE, "max_patches": 8}),
    Case("cohere2-vision-whole", "Cohere2VisionImageProcessor", {"size": SQUARE}, 1,
         call={"crop_to_patches": False}),
    Case("lfm2-vl", "Lfm2VlImageProcessor", LFM2, views=_lfm2),
    Case("lfm2-vl-no-overview", "Lfm2VlImageProcessor", {**LFM2, "use_thumbnail": False},
         views=_lfm2),
    Case("lfm2-vl-whole", "Lfm2VlImageProcessor", {**LFM2, "do_image_splitting": False}, 1, _lfm2),
    Case("gemma3", "Gemma3ImageProcessor", {"size": SQUARE, **SCAN, "do_pan_and_scan": True}),
    Case("gemma3-whole", "Gemma3ImageProcessor", {"size": SQUARE}, 1),
    Case(
        "idefics2-split", "Idefics2ImageProcessor",
        {"size": {"shortest_edge": 16, "longest_edge": 48}, "do_image_splitting": True},
        views=_first,
    ),
    Case(
        "idefics2", "Idefics2ImageProcessor", {"size": {"shortest_edge": 16, "longest_edge": 48}},
        1, _first,
    ),
    Case("idefics3", "Idefics3ImageProcessor", IDEFICS3, views=_first),
    Case("idefics3-whole", "Idefics3ImageProcessor", {**IDEFICS3, "do_image_splitting": False}, 1,
         _first),
    Case("smolvlm", "SmolVLMImageProcessor", IDEFICS3, views=_first),
    Case("mllama", "MllamaImageProcessor", {"size": SQUARE, "max_image_tiles": 4}, views=_mllama),
    Case("llama4", "Llama4ImageProcessor", {"size": SQUARE, "max_patches": 9}),
    *(() if before_5() else (  # release 4 fails with it
        Case("llama4-fills", "Llama4ImageProcessor",
             {"size": SQUARE, "max_patches": 6, "resize_to_max_canvas": True}),)),
    Case("minicpm", "MiniCPMV4_6ImageProcessor", MINICPM, views=_minicpm),
    Case("minicpm-4x", "MiniCPMV4_6ImageProcessor",
         {**MINICPM, "downsample_mode": "4x", "max_slice_nums": 4}, views=_minicpm),
    Case("minicpm-whole", "MiniCPMV4_6ImageProcessor", {**MINICPM, "slice_mode": False}, 1,
         _minicpm),
    Case("minicpm-ocr", "MiniCPMOcrImageProcessor", MINICPM, views=_minicpm),
    Case("minicpm-ocr-small", "MiniCPMOcrImageProcessor",
         {**MINICPM, "scale_resolution": 96, "small_image_upsize": "never"}, views=_minicpm),
    Case("molmo2", "Molmo2ImageProcessor", MOLMO2, views=_molmo2),
    Case("molmo2-odd-margins", "Molmo2ImageProcessor",
         {**MOLMO2, "overlap_margins": [2, 1], "max_crops": 4}, views=_molmo2),
    Case("perception-lm", "PerceptionLMImageProcessor", {"tile_size": T, "max_num_tiles": 9},
         views=_first),
    Case("perception-lm-whole", "PerceptionLMImageProcessor",
         {"tile_size": T, "vision_input_type": "vanilla"}, views=_first),
    Case("granite-docling", "GraniteDoclingImageProcessor", {"size": SQUARE, "max_patches": 6},
         views=_first),
    Case("granite-docling-dense", "GraniteDoclingImageProcessor",
         {"size": SQUARE, "max_patches": 4, "dense_max_patches": 18, "dense_max_scale": 0.9,
          "dense_min_aspect": 1.2, "dense_max_aspect": 3.0}, views=_first),
    Case("granite-docling-whole", "GraniteDoclingImageProcessor",
         {"size": SQUARE, "crop_to_patches": False}, 1, _first),
    Case("ultravbert", "UltraVBertImageProcessor", {**IDEFICS3, "max_image_tiles": 5},
         views=_first),
    Case(
        "pixtral", "PixtralImageProcessor", {"size": {"longest_edge": 96}, "patch_size": 8},
    ),
    Case(
        "qwen-vl", "Qwen2VLImageProcessor",
        {"size": {"shortest_edge": 1024, "longest_edge": 9000}, "patch_size": 4}, views=_qwen,
    ),
    Case(
        "siglip2-naflex", "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 64},
        views=_naflex,
    ),
    Case(
        "pi0", "PI0ImageProcessor",
        {"size": {"max_height": T, "max_width": T}, "pad_size": SQUARE},
    ),
]  # fmt: skip


def _variants() -> list[tuple[Case, str]]:
    found = []
    for case in CASES:
        for variant in (case.processor, f"{case.processor}Fast", f"{case.processor}Pil"):
            kind = getattr(transformers, variant, None)
            if kind is not None and (
                variant == case.processor or kind is not getattr(transformers, case.processor, None)
            ):
                found.append((case, variant))
    return found


VARIANTS = [pytest.param(*one, id=f"{one[0].name}-{one[1]}") for one in _variants()]
SIZED = [
    pytest.param(case, variant, size, id=f"{case.name}-{variant}-{size}")
    for case, variant in _variants()
    for size in case.sizes
]


def ramps(size: Size) -> Tensor:
    """(3, H, W) uint8: x and y as shares of the picture, and white where there is one."""
    y_HW = ((torch.arange(size[0]) + 0.5) / size[0])[:, None].expand(size)
    x_HW = ((torch.arange(size[1]) + 0.5) / size[1])[None].expand(size)
    return (torch.stack([x_HW, y_HW, torch.ones(size)]) * 255).round().to(torch.uint8)


def seen_by(case: Case, variant: str, size: Size) -> tuple[list[Tensor], ImageViews, ViewRule]:
    """What the processor makes of a picture, and what the rule says of it."""
    processor = getattr(transformers, variant)(**{**PLAIN, **case.options})
    steps = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    out = processor(case.nest(ramps(size)), **steps, **(case.call or {}))
    rule = from_processor(processor).rules[case.rule]
    return [torch.as_tensor(view).float() / 255 for view in case.views(out)], rule.views(size), rule


def check(view: ViewGeometry, seen_3HW: Tensor) -> None:
    """The seen pixels are from where the geometry says."""
    axes = []
    for axis in (0, 1):
        edge = (torch.arange(seen_3HW.shape[axis + 1]) + 0.5 - view.offset[axis]) / view.scale[axis]
        axes.append(edge)
    # A pixel of the larger scale from any edge, where filters end.
    clear, inside = [], []
    for axis, place in enumerate(axes):
        size, margin = view.image_size[axis], 1.5 * max(1.0, 1 / view.scale[axis])
        first = -view.offset[axis] / view.scale[axis]
        last = first + view.view_size[axis] / view.scale[axis]
        low, high = max(0.0, first) + margin, min(size, last) - margin
        clear.append((place > low) & (place < high))
        inside.append((place > margin) & (place < high))
        outside = (place < -margin) | (place > min(size, last) + margin)
        there = seen_3HW[2].amax(dim=1 - axis)
        assert bool((there[outside] < 0.02).all())
    there_HW = inside[0][:, None] & inside[1][None]
    assert bool((seen_3HW[2][there_HW] > 0.98).all())
    for axis, channel in ((0, 1), (1, 0)):
        size = view.image_size[axis]
        got = seen_3HW[channel].movedim(axis, 0)[clear[axis]][:, clear[1 - axis]] * size
        error = got - axes[axis][clear[axis]][:, None]
        if error.numel():
            # Ramps are rounded to 255 steps, before and after each resize.
            assert error.abs().max() < 0.3 + size / 200, (view, axis)
            assert error.mean().abs() < 0.1 + size / 400, (view, axis)


@pytest.mark.parametrize(("case", "variant", "size"), SIZED)
def test_views_lie_where_the_processor_puts_them(case: Case, variant: str, size: Size) -> None:
    seen, expected, rule = seen_by(case, variant, size)
    compare(seen, expected, rule)


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.tuples(st.integers(18, 170), st.integers(18, 170)))
def test_at_any_size(case: Case, variant: str, size: Size) -> None:
    seen, expected, rule = seen_by(case, variant, size)
    compare(seen, expected, rule)


def compare(seen: list[Tensor], expected: ImageViews, rule: ViewRule) -> None:
    assert len(seen) == len(expected)
    for view, seen_3HW in zip(expected.views, seen, strict=True):
        shown = tuple(seen_3HW.shape[1:])
        if rule.pads_behind:
            assert all(a >= b for a, b in zip(shown, view.view_size, strict=True))
        else:
            assert shown == view.view_size
        check(view, seen_3HW)
    if expected.overview is not None and len(expected.views) > 1:
        overview = expected.views[expected.overview]
        assert overview == ViewGeometry.squashed(overview.image_size, overview.view_size)


def test_each_family_is_tested() -> None:
    """A rule that is read and not held against its processor would be a guess."""
    kinds = set()
    for case in CASES:
        processor = getattr(transformers, case.processor, None)
        if processor is None:
            continue  # PI0 came with transformers 5
        processor = processor(**{**PLAIN, **case.options})
        kinds |= {type(rule).__name__ for rule in from_processor(processor).rules}
    assert len(kinds) >= 12, kinds


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pictures_are_shown_as_the_processor_shows_them(case: Case) -> None:
    """Padding, too; those that resize twice blur more than our one resize."""
    known = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25] * 3}
    processor = getattr(transformers, case.processor)(**{**PLAIN, **known, **case.options})
    read = from_processor(processor)
    only = replace(read, resize=None, view_rules=(read.rules[case.rule],))
    for size in case.sizes[1:4]:
        image = smooth_picture(size)
        pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        out = processor(case.nest(pixels_3HW), return_tensors="pt", **(case.call or {}))
        ours = [part(image, one, only) for one in read.rules[case.rule].views(size).views]
        for one, other in zip(ours, map(torch.as_tensor, case.views(out)), strict=True):
            error = normalised(one, only) - other[:, : one.shape[1], : one.shape[2]]
            assert error.abs().mean() < 0.1, size


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_size_that_is_called_fixed_is_that_of_all_views(case: Case) -> None:
    known = from_processor(getattr(transformers, case.processor)(**{**PLAIN, **case.options}))
    sizes = {view.view_size for size in SIZES for view in known.views(size).views}
    assert not known.fixed_size or sizes == {known.size}


def smooth_picture(size: Size) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)

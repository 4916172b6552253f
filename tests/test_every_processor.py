"""Every processor class of the installed transformers: its views lie where they are said to lie.

Each class is made with its default options and given a picture whose pixels say where they are, by
another code and at another size than the library's own (red falls with x, green with y). Every rule
that is read from it must say where its output's pixels come from; a class without a rule must be
listed here, with the reason.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors import behaviour
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.processors.unpacking import views_of
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

NEWEST = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
_BACKENDS = ("Fast", "Pil")
_ENDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "VideoProcessor")


def _classes() -> Iterator[str]:
    for name in sorted(dir(transformers)):
        if not name.endswith(_ENDS) or name.startswith(("Base", "Auto", "TimmWrapper")):
            continue
        kind = getattr(transformers, name)
        # Whole processors of models whose names end in Image or Video are made of others.
        parts = {"image_processor", "video_processor", "feature_extractor"}
        if inspect.isclass(kind) and not _is_whole(kind, parts):
            yield name


def _is_whole(kind: type, parts: set[str]) -> bool:
    return issubclass(kind, transformers.ProcessorMixin) or bool(
        parts & {*inspect.signature(kind).parameters}
    )


CLASSES = tuple(_classes())
# Why a class has no rule at its default options; those of "Fast" and "Pil" are the same.
_REASONS: dict[str, str] = {
    "by its own mean and deviation": "Kosmos2_5ImageProcessor Pix2StructImageProcessor",
    "it makes more views of a picture: pixel_values_local": """DeepseekOcr2ImageProcessor
        Step3p7ImageProcessor UnlimitedOcrImageProcessor""",
    "it takes no lone picture": """EfficientLoFTRImageProcessor ImageGPTImageProcessor
        LayoutLMv2ImageProcessor LayoutLMv3ImageProcessor LightGlueImageProcessor
        NemotronH_Omni_Reasoning_V3VideoProcessor SuperGlueImageProcessor VitMatteImageProcessor
        VitPoseImageProcessor""",
    "neither pictures nor patches": """FuyuImageProcessor InklingImageProcessor
        NemotronH_Omni_Reasoning_V3ImageProcessor
        NeoMMEImageProcessor Phi4MultimodalImageProcessor""",
    # Colours in another order, reflections.
    "is not the picture resized, cropped and padded, normalised as": """MobileViTImageProcessor
        PPLCNetImageProcessor PPOCRV5ServerDetImageProcessor
        PPOCRV5ServerRecImageProcessor PPOCRV6SmallRecImageProcessor Swin2SRImageProcessor
        TvpImageProcessor UVDocImageProcessor ZoeDepthImageProcessor""",
    "cannot say its settings": "Ernie4_5_VLMoeVideoProcessor",
}
REASONS = {name: reason for reason, names in _REASONS.items() for name in names.split()}
PROBES = ((170, 260), (800, 800))  # the last is cut into tiles
# Default sizes that take seconds.
_SMALLER: dict[str, dict[str, Any]] = {
    "DonutImageProcessor": {"size": {"height": 320, "width": 240}},
    "Owlv2ImageProcessor": {"size": {"height": 240, "width": 240}},
    "GraniteDoclingImageProcessor": {"size": {"height": 256, "width": 256}},
    "Idefics3ImageProcessor": {"size": {"longest_edge": 728}},
    "SmolVLMImageProcessor": {"size": {"longest_edge": 728}},
    "UltraVBertImageProcessor": {"max_image_size": {"longest_edge": 256}},
}
SMALL, LARGE = (90, 140), (640, 1100)  # of which rules of tiles make several
# How a processor is called, beside its defaults: rules that a call switches on.
_SWITCHES = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan")


_SCAN = {  # as Gemma3Processor does
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def _picture(size: Size) -> Image.Image:
    y_HW, x_HW = ((np.arange(length) + 0.5) / length for length in size)
    rgb_HW3 = np.ones((*size, 3))
    rgb_HW3[..., 0], rgb_HW3[..., 1] = 0.9 - 0.8 * x_HW[None], 0.9 - 0.8 * y_HW[:, None]
    return Image.fromarray((rgb_HW3 * 255).round().astype(np.uint8))


def _calls(processor: Any, picture: Image.Image) -> Iterator[Callable[[], Any]]:
    """With its defaults, with each switch on and off, and with two pictures of one prompt."""
    if type(processor).__name__.endswith("VideoProcessor"):
        frame_3HW = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        clips = [torch.stack([frame_3HW] * 4)]
        yield lambda: processor(videos=clips, do_sample_frames=False, return_tensors="pt")
        return
    yield functools.partial(processor, images=[picture], return_tensors="pt")
    for switch in _SWITCHES:
        if hasattr(processor, switch):
            for on in (True, False):
                told: dict[str, Any] = {
                    switch: on,
                    **(_SCAN if switch == "do_pan_and_scan" else {}),
                }
                told["return_tensors"] = "pt"
                yield functools.partial(processor, images=[picture], **told)
    for nested in ([picture], [picture, picture]):
        yield functools.partial(processor, images=[nested], return_tensors="pt")


def _shown(processor: Any, size: Size) -> Iterator[list[Tensor]]:
    """The (3, H, W) views that it makes, however it is called; in any order of patches."""
    for call in _calls(processor, _picture(size)):
        try:
            yield from views_of(call(), processor)
        except (HostError, TypeError, ValueError):
            continue


def _agree(rule: ViewRule, size: Size, shown: list[Tensor], read: Preprocessing) -> bool:
    """Whether views are those of a rule: more are blank tiles, or others of the same picture."""
    expected = rule.views(size).views
    if len(shown) < len(expected):
        return False
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (read.mean, read.std))
    near = 0.5 if read.interpolation == "nearest" else 0.0

    def lies(view: ViewGeometry, one: Tensor) -> bool:
        return _lies(view, one * std + mean, near, behind=rule.pads_behind)

    return all(
        lies(view, one) or (index >= len(expected) and _is_blank(one))
        for index, (view, one) in enumerate(zip(itertools.cycle(expected), shown, strict=False))
    )


def _is_blank(view_3HW: Tensor) -> bool:
    return bool((view_3HW.amax((1, 2)) == view_3HW.amin((1, 2))).all())


def _lies(view: ViewGeometry, rgb_3HW: Tensor, near: float, *, behind: bool) -> bool:
    """Whether each pixel comes from where the geometry says, and is of one colour beside it."""
    if behind:
        rgb_3HW = rgb_3HW[:, : view.view_size[0], : view.view_size[1]]
    if tuple(rgb_3HW.shape[1:]) != view.view_size:
        return False
    places, clear, outside = [], [], []
    for axis in (0, 1):
        length, scale = view.image_size[axis], view.scale[axis]
        place = (torch.arange(view.view_size[axis]) + 0.5 - view.offset[axis]) / scale
        margin = 2.5 * max(1.0, 1 / scale)
        first, last = max(0.0, float(place[0])), min(length, float(place[-1]))
        places.append(place)
        clear.append((place > first + margin) & (place < last - margin))
        outside.append((place < -margin) | (place > length + margin))
    for axis, channel in ((0, 1), (1, 0)):
        length = view.image_size[axis]
        seen = rgb_3HW[channel].movedim(axis, 0)[clear[axis]][:, clear[1 - axis]]
        error = (0.9 - seen) / 0.8 * length - places[axis][clear[axis]][:, None]
        cut = near * max(1.0, 1 / view.scale[axis])
        if not error.numel() or error.abs().max() > 0.3 + length / 80 + cut:
            return False
        if error.mean().abs() > 0.1 + length / 400 + cut:
            return False
    beside_3N = rgb_3HW[:, outside[0][:, None] | outside[1][None]]
    return not beside_3N.numel() or bool((beside_3N.amax(1) - beside_3N.amin(1)).max() < 0.02)


def _base(name: str) -> str:
    for end in _BACKENDS:
        name = name.removesuffix(end)
    return name


@pytest.mark.skipif(not NEWEST, reason="the lists are those of transformers 5.24 and later")
@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_right_or_refused_with_its_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviour, "_PROBES", PROBES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = getattr(transformers, name)(**_SMALLER.get(_base(name), {}))
    try:
        read = from_processor(processor)
    except HostError as error:
        why = str(error)
    else:
        why = read.unknown
        assert bool(read.rules) != bool(why)
    if why:
        assert _base(name) in REASONS, why
        assert re.search(REASONS[_base(name)], why), why
        return
    assert _base(name) not in REASONS
    for rule in read.rules:
        tiles = len(rule.views(LARGE)) > 1
        for size in (SMALL, LARGE) if tiles else (SMALL,):
            shown = _shown(processor, size)
            assert any(_agree(rule, size, views, read) for views in shown), (rule, size)


def test_the_list_of_refusals_names_classes() -> None:
    assert not NEWEST or {_base(name) for name in CLASSES} >= REASONS.keys()

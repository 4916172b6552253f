"""Hugging Face image processors are read as transformers means them; what is odd is not guessed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import SiglipImageProcessor

from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.preprocessing import (
    CLIP_NORMALISATION,
    HALF_NORMALISATION,
    Preprocessing,
)
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.errors import HostError


def test_clip_processor() -> None:
    from transformers import CLIPImageProcessor

    read = from_processor(CLIPImageProcessor())
    assert read == Preprocessing(*CLIP_NORMALISATION, (224, 224), "shortest", 224, crop_half="down")


def test_siglip_processor_inside_another() -> None:
    outer = type("Processor", (), {"image_processor": SiglipImageProcessor(resample=2)})()
    assert from_processor(outer) == Preprocessing(
        *HALF_NORMALISATION, (224, 224), "squash", None, "bilinear", "down"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": {"height": 8, "width": 4}}, ((8, 4), "squash")),
        ({"size": 16}, ((16, 16), "squash")),
        (
            {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16},
            ((16, 16), "shortest"),
        ),
        ({"size": 224, "do_center_crop": True, "crop_size": 224}, ((224, 224), "shortest")),
        # Padded, but where is not known.
        ({"size": [8, 8], "do_pad": True}, ((8, 8), None)),
        (
            {"size": 8, "do_pad": True, "image_processor_type": "Owlv2ImageProcessor"},
            ((8, 8), None),
        ),
        ({"size": {"height": 8, "width": 8}, "do_resize": False}, ((8, 8), None)),
        (
            {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
            ((224, 224), None),
        ),
        (
            {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 8, "crop_pct": 0.9},
            ((8, 8), None),
        ),
        ({"do_center_crop": True, "crop_size": 8}, ((8, 8), None)),
    ],
)
def test_dict(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    read = from_processor({"image_mean": 0.5, "image_std": [0.5] * 3, **given})
    assert (read.size, read.resize) == expected


@pytest.mark.parametrize(("to", "crop"), [(224, 224), (256, 224)])
def test_an_int_before_a_centre_crop_is_the_short_side(to: int, crop: int) -> None:
    """Old CLIP files: {"size": 224, "do_center_crop": true, "crop_size": 224}."""
    given = {"size": to, "do_center_crop": True, "crop_size": crop}
    read = from_processor({"image_mean": 0.5, "image_std": 0.5, **given})
    assert (read.size, read.resize, read.resize_to) == ((crop, crop), "shortest", to)


@pytest.mark.parametrize(("pads", "kind"), [(True, "pad"), (False, "shortest")])
def test_only_llavas_own_processor_pads_to_a_square(pads: bool, kind: str) -> None:
    from transformers import LlavaImageProcessor, LlavaNextImageProcessor

    assert from_processor(LlavaImageProcessor(do_pad=pads)).resize == kind
    assert from_processor(LlavaNextImageProcessor()).resize is None


def test_without_normalisation() -> None:
    read = from_processor({"do_normalize": False, "image_mean": 0.5, "image_std": 0.5, "size": 8})
    assert (read.mean, read.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"resample": 0},
        {"resample": 2},
    ],
    ids=str,
)
def test_pictures_become_what_the_processor_makes_of_them(options: dict[str, Any]) -> None:
    size = {"height": 32, "width": 32}
    processor = SiglipImageProcessor(size=size, **{"resample": 3, **options})
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(pixels_HWC)
    expected = processor(image, return_tensors="pt")["pixel_values"].float()
    found = to_pixels([image], from_processor(processor))
    # It resizes tensors, we pictures: some round otherwise, by one of 256 steps.
    step = 1.01 * float((expected.max() - expected.min()) / 255)
    torch.testing.assert_close(found, expected, rtol=0, atol=step)


@pytest.mark.parametrize("filter_", [(4, "box"), (5, "hamming"), (1, "lanczos"), (None, "bicubic")])
def test_the_filter(filter_: tuple[int | None, str]) -> None:
    given = {"image_mean": 0.5, "image_std": 0.5, "size": 8, "resample": filter_[0]}
    assert from_processor(given).interpolation == filter_[1]


@pytest.mark.parametrize(
    ("odd", "message"),
    [({"resample": 9}, "resample=9 is none of Pillow's"), ({"rescale_factor": 0}, "no picture")],
)
def test_what_no_processor_does_is_refused(odd: dict[str, Any], message: str) -> None:
    with pytest.raises(HostError, match=message):
        from_processor({"image_mean": 0.5, "image_std": 0.5, "size": 8, **odd})


def test_missing_values_are_named() -> None:
    with pytest.raises(HostError, match="cannot read image_std, size or crop_size"):
        from_processor({"image_mean": [0.5] * 3, "image_processor_type": "Odd"})


def test_a_processor_is_read_as_it_is_now() -> None:
    """Settings changed after a reading: the next one is another, the first stays as it was."""
    from transformers import DeiTImageProcessor

    processor = DeiTImageProcessor()
    first = from_processor(processor)
    assert first == from_processor(processor)
    processor.crop_size = {"height": 112, "width": 112}
    again = from_processor(processor)
    assert first != again
    sizes = [read.rules[0].views((90, 140)).views[0].view_size for read in (first, again)]
    assert sizes == [(224, 224), (112, 112)]


@pytest.mark.parametrize(
    "value", [0, -5, "abc", 10**9, 1e30, math.nan, [], [[0, 0]], {"height": 0}]
)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama4ImageProcessor", "max_patches"),
        ("Llama4ImageProcessor", "size"),
        ("Molmo2ImageProcessor", "max_crops"),
        ("Molmo2ImageProcessor", "overlap_margins"),
        ("Molmo2ImageProcessor", "patch_size"),
        ("PerceptionLMImageProcessor", "max_num_tiles"),
        ("MiniCPMV4_6ImageProcessor", "max_slice_nums"),
        ("MiniCPMV4_6ImageProcessor", "scale_resolution"),
        ("GraniteDoclingImageProcessor", "max_patches"),
        ("GotOcr2ImageProcessor", "max_patches"),
        ("UltraVBertImageProcessor", "max_image_size"),
        ("LlavaNextImageProcessor", "image_grid_pinpoints"),
        ("LlavaNextImageProcessor", "crop_size"),
        ("Lfm2VlImageProcessor", "tile_size"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, key: str, value: Any) -> None:
    """No raw error, no hours, no gigabytes: of a file that was tampered with."""
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} lacks {name}")
    given = {**kind().to_dict(), "image_processor_type": name, key: value}
    try:
        rules = from_processor(given).rules
    except HostError:
        return
    for rule in rules:  # the value can be
        assert len(rule.views((900, 700)))

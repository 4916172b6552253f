"""What a head's config and features may be: presets, levels, and errors that name the thing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clipdepth_plugin import HeadConfig, TowerFeatures
from clipdepth_plugin.config import scale_levels
from clipdepth_plugin.errors import FeaturesError, HostError
from tests.tiny.depth_heads import (
    FAST,
    GUIDED,
    SMALL,
    WIDTH,
    make_features,
    make_head,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": {}}, "at least one level"),
        ({"drop": 9}, r"levels \[9\] are missing"),
        ({"context": None}, "needs the 'pooled' context"),
        ({"width": 8}, "has width 8; the head was made for 16"),
        ({"tokens": 8}, r"needs \(B, 9, D\)"),
        ({"batch": 3}, "holds 3 views"),
        ({"options": GUIDED}, "the head reads the tower's input pixels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_features(change: dict[str, Any], message: str) -> None:
    head = make_head(**change.get("options", {}))
    good = make_features(head.config)
    levels = dict(good.levels)
    if "drop" in change:
        del levels[change["drop"]]
    if "width" in change:
        levels[3] = levels[3][..., : change["width"]]
    if "tokens" in change:
        levels[3] = levels[3][:, : change["tokens"]]
    if "batch" in change:
        levels[12] = torch.zeros(change["batch"], 9, WIDTH)
    with pytest.raises(FeaturesError, match=message):
        head(
            TowerFeatures(
                change.get("levels", levels), change.get("context", good.context), good.grid
            )
        )


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 4, 48, 48), r"reads \(B, 3, H, W\) floats"),
        (
            torch.zeros(2, 3, 48, 48, dtype=torch.uint8),
            r"pixels is a tensor \(2, 3, 48, 48\) of torch.uint8",
        ),
        (torch.zeros(2, 3, 48, 50), "3 x 3 patches do not divide"),
        (torch.zeros(2, 48, 48), "expected 4 axes and 2 views"),
    ],
    ids=["channels", "whole-numbers", "not-whole-patches", "axes"],
)
def test_pixels_that_are_not_the_towers(pixels: torch.Tensor, message: str) -> None:
    head = make_head(**GUIDED)
    with pytest.raises(FeaturesError, match=message):
        head(dataclasses.replace(make_features(head.config), pixels=pixels))


@pytest.mark.parametrize("size", [(0, 5), (-1, 4), (7.5, 3), 48])
@pytest.mark.parametrize("form", ["plain", "fused"])
def test_a_size_that_is_none(form: str, size: Any) -> None:
    head = make_head(**FAST)
    with pytest.raises(HostError, match="size: got"):
        (head if form == "plain" else head.fused())(make_features(head.config), size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"semantic_levels": (1, 2)}, "2 levels for 4 stages"),
        ({"structural_levels": (1, 2)}, "give 3, one for each stage but the last"),
        ({"depth_range": (2.0, 1.0)}, "low < high"),
        ({"depth_range": (0.0, 1.0)}, "low < high"),
        ({"canonical_focal": math.inf}, "canonical_focal"),
        ({"canonical_focal": math.nan}, "canonical_focal"),
        ({"depth_range": (0.1, math.inf)}, "depth_range"),
        ({"activation": "tanh"}, "activation"),
        ({"preset": "nosuch"}, "preset"),
        ({"preset": ["fast"]}, "preset"),
        ({"join_kernel": 1}, "the dual-path decoder has no image stem"),
        ({**FAST, "join_kernel": 1}, "there is no image stem to join"),
        ({"levels": (1,)}, "Extra inputs"),
        ({"channels": ()}, "at least one decoder stage"),
        ({"channels": (8,), "semantic_levels": (1,), "structural_levels": ()}, "two stages"),
        ({"auxiliary": 9}, "9 outputs for 4 stages"),
        ({"preset": "fast"}, "the compact decoder takes three numbers"),
        ({**FAST, "channels": (5, 4, 4)}, "the first of them even"),
        ({**FAST, "auxiliary": 1}, "no auxiliary outputs"),
        ({"stem_channels": 8}, "the dual-path decoder has no image stem"),
        ({"likeness_channels": 8}, "the dual-path decoder has no image stem"),
        ({**FAST, "likeness_channels": 8}, "beside an image stem only"),
        ({**FAST, "join_kernel": 2}, "join_kernel"),
        ({**FAST, "semantic_levels": ()}, "at least one level"),
        ({**FAST, "structural_levels": ()}, "give at least one, or set structural=False"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadConfig(**{**SMALL, **options})


def test_presets() -> None:
    assert HeadConfig(width=8).structural_levels == (2, 1, 0)
    middle = HeadConfig(width=8, preset="spaceclip-middle")
    assert middle.structural_levels == (7, 5, 4)
    assert middle.levels == (3, 4, 5, 6, 7, 9, 12)
    given_wins = HeadConfig(width=8, preset="spaceclip-middle", structural_levels=(6, 5, 4))
    assert given_wins.structural_levels == (6, 5, 4)
    assert HeadConfig.model_validate_json(middle.model_dump_json()) == middle


def test_scaled_levels() -> None:
    assert scale_levels((12, 9, 6, 3), 24) == (24, 18, 12, 6)
    assert scale_levels((12, 9, 6, 3), 27) == (27, 20, 14, 7)
    assert scale_levels((7, 5, 4), 12) == (7, 5, 4)

"""Scale, slope and confidence from points whose truth is known, and what points don't determine.

Axes: P pictures, K points of a picture.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clipdepth_plugin.calibrating.calibrate import Calibrated, calibrate
from clipdepth_plugin.calibrating.choosing import Asked, choose
from clipdepth_plugin.calibrating.groups import grouped
from clipdepth_plugin.calibrating.line import fit
from clipdepth_plugin.calibrating.readings import Points, Readings
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.metric_calibration import interval
from tests.tiny.depth_heads import FAST, make_features, make_head

BLOCKS = "blocks of consecutive pictures"


def points(
    scale: float = 1.0,
    slope: float = 1.0,
    *,
    seed: int = 0,
    groups: int = 8,
    pictures: int = 2,
    count: int = 30,
    near: float = 0.5,
    far: float = 5.0,
    noise: float = 0.1,
    common: float = 0.03,
    wrong: float = 0.0,
    spread: float | None = None,
) -> Points:
    """Points whose truth is the prediction, distorted.

    ``noise`` is of each point, ``common`` of all points of a group, ``wrong`` the share measured on
    another surface; ``spread`` is what a head with confidence predicts.
    """
    g = torch.Generator().manual_seed(seed)
    total = groups * pictures
    shape = (total, count)
    low, high = math.log(near), math.log(far)
    pred_PK = low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)
    group_P = torch.arange(total) // pictures
    true_PK = math.log(scale) + slope * pred_PK
    true_PK += noise * torch.randn(shape, generator=g, dtype=torch.float64)
    true_PK += common * torch.randn(groups, generator=g, dtype=torch.float64)[group_P][:, None]
    wrong_PK = torch.rand(shape, generator=g) < wrong
    true_PK = torch.where(wrong_PK, true_PK + 1.5, true_PK)
    spread_PK = None if spread is None else torch.full_like(pred_PK, math.log(spread))
    return Points(group_P, pred_PK, true_PK, spread_PK, torch.ones(shape, dtype=torch.bool))


def calibrated(given: Points, head: dict[str, Any] | None = None, **asked: Any) -> Calibrated:
    names = tuple(map(str, range(len(given.group_P))))
    readings = Readings(given, names, BLOCKS, (0.5, 5.0), (), 0)
    return calibrate(make_head(**{**FAST, **(head or {})}), readings, **asked)


@pytest.mark.parametrize(
    ("scale", "slope", "more"),
    [
        (1.4, 1.0, {}),
        (0.6, 1.0, {"wrong": 0.1}),
        (1.2, 0.7, {}),
        (0.8, 1.3, {"wrong": 0.1}),
        (1.3, 1.0, {"count": 2, "pictures": 1, "noise": 0.03, "seed": 1}),
        (3.0, 1.0, {"noise": 0.0, "common": 0.0}),
    ],
    ids=str,
)
def test_a_known_distortion_is_found_within_its_error_bars(
    scale: float, slope: float, more: dict[str, Any]
) -> None:
    given = points(scale, slope, **more)
    result = calibrated(given, data="these points")
    record = result.record
    assert (result.no_slope is None) == (slope != 1)
    reach = interval(record.scale_error, record.groups)
    assert reach is not None
    expected = math.log(scale) + (slope - 1) * math.log(record.pivot)
    assert abs(math.log(record.scale) - expected) <= reach + 1e-9
    assert reach < 0.1
    if slope != 1:
        reach = interval(record.slope_error, record.groups)
        assert reach is not None
        assert abs(record.slope - slope) <= reach < 0.2
    count = int(given.valid_PK.sum())
    assert record.left_out == pytest.approx(more.get("wrong", 0) * count, abs=0.03 * count)
    assert result.after is not None
    assert result.better
    if "wrong" not in more:
        assert result.after.abs_rel < 0.1 < result.before.abs_rel
    assert record.abs_rel == (result.before.abs_rel, result.after.abs_rel)
    assert "95%" in record.said


def test_error_bars_hold_what_they_say() -> None:
    """95% of them, of points that are alike in their group."""
    held = 0
    for seed in range(60):
        record = calibrated(points(1.3, seed=seed, common=0.1, count=5), slope="never").record
        reach = interval(record.scale_error, record.groups)
        held += abs(math.log(record.scale / 1.3)) <= (reach or 0)
    assert held >= 54


@pytest.mark.parametrize(
    "asked", [{"slope": "always"}, {"slope": "always", "confidence": "always"}]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_slope_that_hangs_on_one_group_is_fitted_without_it_by_the_scale(
    seed: int, asked: dict[str, Any]
) -> None:
    """The others span little, and tilt the wrong way: alone they give a negative slope."""
    narrow = {"groups": 3, "pictures": 1, "count": 60, "near": 1.85, "far": 2.15, "spread": 0.1}
    few = points(4.0, -0.8, seed=seed, noise=0.3, **narrow)  # type: ignore[arg-type]
    wide = points(groups=1, pictures=1, count=60, near=1, far=8, noise=0.3, spread=0.1, seed=seed)
    pairs: Any = zip(few[1:], wide[1:], strict=True)
    fields = (torch.cat(pair) for pair in pairs)
    result = calibrated(Points(torch.arange(4), *fields), {"confidence": True}, **asked)
    assert result.no_slope is None
    assert 0.5 < result.record.slope < 1.5


def test_noise_gets_no_slope() -> None:
    """Of a set of pictures that differ, with wrong points among them."""
    chosen = [
        choose(points(seed=seed, noise=0.3, common=0.2, wrong=0.05), Asked(confidence="never"))
        for seed in range(40)
    ]
    assert sum(model.no_slope is None for model in chosen) <= 3
    assert "no significant gain" in (chosen[0].no_slope or "")


def test_the_cross_validation_is_of_what_was_left_out() -> None:
    """A group whose scale is another's is not predicted by a fit of the others."""
    given = points(groups=2, pictures=1, noise=0.0, common=0.0)
    moved = given._replace(log_true_PK=given.log_true_PK + torch.tensor([[0.0], [1.0]]).double())
    result = calibrated(moved, slope="never")
    assert result.after is not None
    expected = ((math.e - 1) + (1 - 1 / math.e)) / 2
    assert result.after.abs_rel == pytest.approx(expected, rel=1e-6)
    assert not result.better


FEW = {"groups": 1, "pictures": 1, "count": 1}


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        (FEW, {"slope": "always"}, "the slope: 1 points in 1 independent groups"),
        ({**FEW, "count": 50}, {"slope": "always"}, "50 points in 1 independent groups"),
        ({"groups": 3}, {"slope": "always"}, "it takes 4 groups"),
        ({"near": 2.0, "far": 2.01}, {"slope": "always"}, "differ by a factor of 1"),
        ({"slope": -1.0}, {"slope": "always"}, "which is no slope of depth"),
        ({}, {"confidence": "always"}, "the confidence: this head predicts no confidence"),
        ({"spread": 0.1, "count": 5}, {"confidence": "always"}, "80 points .*takes 100"),
        ({"spread": 0.1, "groups": 2}, {"confidence": "always"}, "100 points in 4"),
        ({"spread": 0.1, "noise": 0.01}, {"confidence": "always"}, "0 are not; it takes 10"),
        ({"spread": 1e-4, "noise": 0.3}, {"confidence": "always"}, "on the head's predicted error"),
        ({"scale": 1000.0}, {}, "are they in metres"),
        ({}, {"slope": "maybe"}, "slope: got 'maybe', expected auto, always, never"),
    ],
    ids=str,
)
def test_what_points_do_not_determine_is_refused(
    given: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        calibrated(points(**given), **asked)


@pytest.mark.parametrize(
    ("given", "of_slope", "of_confidence"),
    [
        (FEW, "it takes 4 groups", "no confidence"),
        ({"near": 2.0, "far": 2.01}, "differ by a factor", "no confidence"),
        ({"spread": 0.1, "count": 5}, "no significant gain", "it takes 100"),
    ],
    ids=str,
)
def test_left_to_auto_they_say_why_not(
    given: dict[str, Any], of_slope: str, of_confidence: str
) -> None:
    result = calibrated(points(**given), {"confidence": "spread" in given})
    assert of_slope in (result.no_slope or "")
    assert of_confidence in (result.no_confidence or "")
    assert result.record.slope == 1
    assert result.head.config.confidence_scale == 1


def test_one_picture_gives_a_scale_without_an_error_bar() -> None:
    result = calibrated(points(1.7, **{**FEW, "count": 20}))
    assert result.record.scale == pytest.approx(1.7, rel=0.1)
    assert result.after is None
    assert result.record.abs_rel is None
    assert result.record.scale_error is None
    assert "(no error bar)" in result.record.said


@pytest.mark.parametrize(("spread", "before"), [(0.02, 1.0), (0.5, 1.0), (0.02, 3.0)])
def test_an_untrue_confidence_is_mended(spread: float, before: float) -> None:
    given = points(1.5, noise=0.25, spread=spread)
    result = calibrated(given, {"confidence": True, "confidence_scale": before})
    assert result.no_confidence is None
    assert result.after is not None
    errors = result.before.calibration_error, result.after.calibration_error
    assert errors[1] is not None
    assert errors[1] < 0.1 < (errors[0] or 0)
    reach = interval(result.record.confidence_error, result.record.groups)
    assert reach is not None
    # The Laplace scale under which as many are within 1.25 as of this normal distribution.
    right = math.erf(math.log(1.25) / math.hypot(0.25, 0.03) / math.sqrt(2))
    expected = -math.log(1.25) / math.log(1 - right) / spread
    assert abs(math.log(result.head.config.confidence_scale / expected)) < reach + 0.05


def test_a_slope_moves_the_confidence_with_it() -> None:
    """What the head predicts of its own error is that of the distorted depth."""
    given = points(slope=0.5, spread=0.1, noise=0.05)
    result = calibrated(given, {"confidence": True}, slope="always", confidence="never")
    features = make_features(result.head.config)
    with torch.no_grad():
        before = make_head(**FAST, confidence=True).estimate(features)
        after = result.head.estimate(features)
    assert result.record.slope == pytest.approx(0.5, abs=0.1)
    assert after.log_scale is not None
    assert before.log_scale is not None
    moved = after.log_scale - before.log_scale
    torch.testing.assert_close(moved, torch.full_like(moved, math.log(result.record.slope)))


def test_pictures_weigh_the_same_however_many_points_they_have() -> None:
    given = points(groups=3, pictures=1, noise=0.0, common=0.0)
    true_PK = given.log_true_PK + torch.tensor([[0.1], [0.1], [0.4]]).double()
    few_PK = given.valid_PK.clone()
    few_PK[:2, 3:] = False
    line = fit(given._replace(log_true_PK=true_PK, valid_PK=few_PK), slope=False)
    assert line.log_scale == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("names", "independent", "groups", "kind"),
    [
        (["a", "b/c", "b/d"], True, [0, 1, 2], "pictures"),
        ([f"s/{i}/x" for i in range(4)], False, [0, 1, 2, 3], "sequences"),
        (["s/0/a", "s/0/b", "s/1/a"], False, [0, 1, 2], BLOCKS),
        ([f"s/{i:02}" for i in range(16)], False, [i // 2 for i in range(16)], BLOCKS),
        ([f"{i}" for i in range(24)], True, [i // 2 for i in range(24)], "groups of pictures"),
        (["s/0"], False, [0], BLOCKS),
    ],
    ids=str,
)
def test_groups(names: list[str], independent: bool, groups: list[int], kind: str) -> None:
    group_P, said = grouped(names, independent=independent)
    assert group_P.tolist() == groups
    assert said == kind

"""Calibration error and risk-coverage curve, against cases that can be worked out."""

from __future__ import annotations

import math

import pytest
import torch

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.calibration import PixelSample, calibrate, take_pixels


def pixels(confidence: list[float], right: list[bool], error: list[float]) -> PixelSample:
    return PixelSample(
        torch.tensor(confidence, dtype=torch.float64),
        torch.tensor(right),
        torch.tensor(error, dtype=torch.float64),
    )


def test_a_laplace_world_is_calibrated() -> None:
    """Errors drawn with the very scales that the confidences come from."""
    generator = torch.Generator().manual_seed(0)
    uniform_N = torch.rand(200_000, generator=generator, dtype=torch.float64)
    scale_N = 0.05 + 0.5 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    d_N = -scale_N * uniform_N.log()  # |log ratio| of a Laplace distribution
    confidence_N = 1 - torch.exp(-math.log(1.25) / scale_N)
    world = PixelSample(confidence_N, d_N < math.log(1.25), d_N.expm1())
    calibration = calibrate([world])
    assert calibration.calibration_error < 0.01
    assert calibration.share_right == pytest.approx(calibration.mean_confidence, abs=0.01)
    assert calibration.area_of_the_error < calibration.area < calibration.abs_rel
    overconfident = PixelSample(confidence_N.sqrt(), world.right_N, world.error_N)
    assert calibrate([overconfident]).calibration_error > 0.1


def test_figures_by_hand() -> None:
    two = [
        pixels([0.9, 0.1], [True, False], [0.1, 0.5]),
        pixels([0.9, 0.5], [False, True], [0.3, 0.2]),
    ]
    calibration = calibrate(two)
    # Bins: {0.9, 0.9} half right, {0.5} right, {0.1} wrong.
    assert calibration.calibration_error == pytest.approx((2 * 0.4 + 0.5 + 0.1) / 4)
    # Surest first: 0.1 and 0.3 share 0.2, then 0.2, then 0.5.
    assert calibration.area == pytest.approx((0.2 + 0.2 + 0.2 + 1.1 / 4) / 4)
    assert calibration.area_of_the_error == pytest.approx((0.1 + 0.15 + 0.2 + 1.1 / 4) / 4)
    assert calibration.abs_rel == pytest.approx(1.1 / 4)
    assert calibration.curve[0] == pytest.approx((0.25, 0.2))
    assert calibration.curve[-1] == pytest.approx((1.0, 1.1 / 4))


def test_pictures_weigh_alike_whatever_their_pixels() -> None:
    """A picture of few pixels counts as the same picture would with each of them five times."""
    generator = torch.Generator().manual_seed(0)

    def picture(error: float, count: int) -> PixelSample:
        error_N = error * torch.rand(count, generator=generator, dtype=torch.float64)
        noise_N = torch.rand(count, generator=generator, dtype=torch.float64)
        return PixelSample(0.7 * (1 - error_N) + 0.3 * noise_N, error_N < 0.25, error_N)

    large, few = picture(0.3, 1000), picture(0.9, 200)
    many = PixelSample(few.confidence_N.repeat(5), few.right_N.repeat(5), few.error_N.repeat(5))
    got, expected = calibrate([large, few]), calibrate([large, many])
    assert (got.pixels, expected.pixels) == (1200, 2000)
    for name in ("mean_confidence", "share_right", "calibration_error", "abs_rel"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name))
    for name in ("area", "area_of_the_error"):  # whose steps are coarser
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=0.01)
    for point, same in zip(got.curve, expected.curve, strict=True):
        assert point == pytest.approx(same, rel=0.05)
    right, wrong = pixels([0.5] * 500, [True] * 500, [0.0] * 500), pixels([0.5], [False], [0.5])
    assert calibrate([right, wrong]).share_right == pytest.approx(0.5)


def test_a_confidence_that_says_nothing_gains_nothing() -> None:
    calibration = calibrate([pixels([0.7] * 4, [True] * 4, [0.1, 0.2, 0.3, 0.0])])
    assert calibration.area == pytest.approx(calibration.abs_rel)


def test_pixels_of_a_picture() -> None:
    depth_HW = torch.full((60, 60), 2.0)
    valid_HW = depth_HW > 0
    valid_HW[:, :10] = False
    pred_HW = torch.where(valid_HW, depth_HW * 1.2, math.nan)
    pred_HW[30:] = 2.0 / 1.3
    taken = take_pixels(torch.full((60, 60), 0.6), pred_HW, depth_HW, valid_HW)
    assert taken.confidence_N.shape == (1000,)
    assert float(taken.right_N.double().mean()) == pytest.approx(0.5, abs=0.01)
    assert taken.error_N.max() == pytest.approx(1 - 1 / 1.3)
    few = take_pixels(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2), torch.eye(2) > 0)
    assert few.error_N.tolist() == [0.0, 0.0]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="no valid depth"):
        calibrate([])
    with pytest.raises(DataError, match="not a probability"):
        calibrate([pixels([1.5], [True], [0.1])])

"""Calibration error and risk-coverage curve, against cases that can be worked out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.calibration import calibrate, take_pixels


def pixels(confidence: list[float], right: list[bool], error: list[float]) -> Tensor:
    return torch.tensor([confidence, right, error], dtype=torch.float64)


def test_a_laplace_world_is_calibrated() -> None:
    """Errors drawn with the very scales that the confidences come from."""
    generator = torch.Generator().manual_seed(0)
    uniform_N = torch.rand(200_000, generator=generator, dtype=torch.float64)
    scale_N = 0.05 + 0.5 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    d_N = -scale_N * uniform_N.log()  # |log ratio| of a Laplace distribution
    confidence_N = 1 - torch.exp(-math.log(1.25) / scale_N)
    world = torch.stack([confidence_N, (d_N < math.log(1.25)).double(), d_N.expm1()])
    calibration = calibrate([world])
    assert calibration.calibration_error < 0.01
    assert calibration.share_right == pytest.approx(calibration.mean_confidence, abs=0.01)
    assert calibration.area_of_the_error < calibration.area < calibration.abs_rel
    overconfident = torch.stack([confidence_N.sqrt(), world[1], world[2]])
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

    def picture(error: float, count: int) -> Tensor:
        error_N = error * torch.rand(count, generator=generator, dtype=torch.float64)
        noise_N = torch.rand(count, generator=generator, dtype=torch.float64)
        right_N = (error_N < 0.25).double()
        return torch.stack([0.7 * (1 - error_N) + 0.3 * noise_N, right_N, error_N])

    large, few = picture(0.3, 1000), picture(0.9, 200)
    many = few.repeat(1, 5)
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
    assert taken.shape == (3, 1000)
    assert float(taken[1].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(taken[2].max()) == pytest.approx(1 - 1 / 1.3)
    few = take_pixels(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2), torch.eye(2) > 0)
    assert few[2].tolist() == [0.0, 0.0]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="no valid depth"):
        calibrate([])
    with pytest.raises(DataError, match="not a probability"):
        calibrate([pixels([1.5], [True], [0.1])])

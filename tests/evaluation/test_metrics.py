"""Metrics and boundaries against plain NumPy, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.metrics import (
    METRICS,
    alignment_scale,
    boundary_mask,
    image_metrics,
    mean_metrics,
)

Map = NDArray[np.float64]


def maps(share: float = 0.8, shape: tuple[int, int] = (30, 41)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    depth = 1 + 0.004 * torch.arange(shape[1]) + torch.zeros(shape)
    depth[8:20, 10:25] += 1.5
    pred = depth * torch.exp(0.3 * torch.randn(shape, generator=g)) * 1.2
    valid = torch.rand(shape, generator=g) < share
    valid[2:28, 2:39] = True
    valid[15, 20] = False
    depth[~valid] = 0
    return pred, depth, valid


def measured(pred: Tensor, depth: Tensor, valid: Tensor) -> dict[str, float]:
    return image_metrics(pred, depth, valid, boundary_mask(depth.double(), valid))


def numpy_boundary(depth: Map, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As the specification words it, one pixel at a time."""
    height, width = depth.shape
    edge = np.zeros_like(valid)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                y2, x2 = y + dy, x + dx
                if not (0 <= y2 < height and 0 <= x2 < width) or not (
                    valid[y, x] and valid[y2, x2]
                ):
                    continue
                edge[y, x] |= abs(math.log(depth[y, x]) - math.log(depth[y2, x2])) > 0.05
    mask = np.zeros_like(valid)
    for y in range(3, height - 3):
        for x in range(3, width - 3):
            around = np.s_[y - 3 : y + 4, x - 3 : x + 4]
            mask[y, x] = valid[around].all() and edge[around].any()
    return mask


def numpy_metrics(pred: Map, depth: Map, valid: NDArray[np.bool_]) -> dict[str, float]:
    near = numpy_boundary(depth, valid)
    p, t = pred[valid], depth[valid]
    d = np.log(p) - np.log(t)
    worst = np.maximum(p / t, t / p)
    return {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
        "silog": 100 * np.sqrt(np.mean(d**2) - np.mean(d) ** 2),
        "delta1": np.mean(worst < 1.25),
        "delta2": np.mean(worst < 1.25**2),
        "delta3": np.mean(worst < 1.25**3),
        "boundary_abs_rel": np.mean(np.abs(pred - depth)[near] / depth[near]),
    }


def test_metrics_agree_with_numpy() -> None:
    pred, depth, valid = maps()
    got = measured(pred, depth, valid)
    arrays = pred.double().numpy(), depth.double().numpy(), valid.numpy()
    assert got == pytest.approx(numpy_metrics(*arrays), abs=1e-6)
    assert list(got) == [metric.name for metric in METRICS]


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_boundaries_agree_with_the_words_of_the_specification(share: float) -> None:
    _, depth, valid = maps(share)
    if share == 1.0:
        valid = torch.ones_like(valid)
        depth = depth.clamp_min(1)
    mask = boundary_mask(depth.double(), valid)
    assert mask.any()
    assert not mask.all()
    np.testing.assert_array_equal(
        mask.numpy(), numpy_boundary(depth.double().numpy(), valid.numpy())
    )


def test_without_a_boundary_there_is_no_figure() -> None:
    flat = torch.full((20, 20), 2.0)
    got = measured(flat * 1.1, flat, torch.ones(20, 20, dtype=torch.bool))
    assert math.isnan(got["boundary_abs_rel"])
    assert got["abs_rel"] == pytest.approx(0.1, abs=1e-6)
    assert mean_metrics([got, {**got, "boundary_abs_rel": 0.5}])["boundary_abs_rel"] == 0.5


def test_a_perfect_prediction() -> None:
    _, depth, valid = maps()
    got = measured(depth, depth, valid)
    for metric in METRICS:
        assert got[metric.name] == (0.0 if metric.lower_is_better else 1.0)


@pytest.mark.parametrize("count", [6, 7])
def test_alignment(count: int) -> None:
    g = torch.Generator().manual_seed(0)
    pred, depth = torch.rand(2, 1, count, generator=g) + 0.5
    valid = torch.ones(1, count, dtype=torch.bool)
    p, t = pred.numpy().astype(np.float64), depth.numpy().astype(np.float64)
    median = np.median(t) / np.median(p)
    assert alignment_scale(pred, depth, valid, "median") == pytest.approx(median, rel=1e-12)
    lsq = np.linalg.lstsq(p.reshape(-1, 1), t.ravel())[0][0]
    assert alignment_scale(pred, depth, valid, "lsq") == pytest.approx(lsq, rel=1e-12)
    assert alignment_scale(pred, depth, valid, "none") == 1.0


def test_means_are_image_by_image() -> None:
    pred, depth, valid = maps()
    one, two = measured(pred, depth, valid), measured(pred * 2, depth, valid)
    means = mean_metrics([one, two])
    for name, value in means.items():
        assert value == pytest.approx((one[name] + two[name]) / 2)


def test_what_has_no_value_is_refused() -> None:
    pred, depth, valid = maps()
    with pytest.raises(DataError, match="not above 0 m"):
        measured(pred * 0, depth, valid)
    with pytest.raises(DataError, match="no pixel"):
        measured(pred, depth, torch.zeros_like(valid))
    with pytest.raises(DataError, match="one size"):
        image_metrics(pred[1:], depth, valid, valid)
    with pytest.raises(DataError, match="no image"):
        mean_metrics([])

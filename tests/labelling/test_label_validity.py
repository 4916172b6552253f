"""Which pixels of a label count, and what is stored of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipdepth_plugin.labelling.source import SourceCard
from clipdepth_plugin.labelling.validity import depth_scale, farthest, stored_label

NAN, INF = float("nan"), float("inf")


def row(values: list[float]) -> Any:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("bound", "asked", "far", "scale"),
    [
        (None, None, 100.0, 600),
        (20.0, None, 19.8, 3000),
        (80.0, None, 79.2, 800),
        (80.0, 30.0, 30.0, 2000),
        (20.0, 50.0, 19.8, 3000),
        (None, 1000.0, 1000.0, 60),
        (None, 0.5, 0.5, 100_000),
    ],
)
def test_range_and_scale(bound: float | None, asked: float | None, far: float, scale: int) -> None:
    card = SourceCard(source="x:y", units="metres", version="1", max_depth=bound)
    assert farthest(card, asked) == pytest.approx(far)
    assert depth_scale(far) == scale
    assert far * scale < 65535.5


def test_metres() -> None:
    depth_HW = row([1.0, 0.0, -1.0, NAN, INF, 19.79, 19.8, 20.0, 1e-9, 2.0])
    keep_HW = np.array([[True] * 9 + [False]])
    stored = stored_label("metres", depth_HW, None, keep_HW=keep_HW, farthest_metres=19.8)
    assert stored.depth_HW.tolist() == [[3000, 0, 0, 0, 0, 59370, 0, 0, 1, 0]]
    assert stored.agreement_HW is None


def test_metres_and_their_mirror_image() -> None:
    depth_HW = row([1.0, 1.0, 1.1, 1.0, 1.0, 1.05, 1.0, NAN])
    mirrored_HW = row([1.0, 1.2, 1.0, NAN, -1.0, 1.0, 1.099999, 1.0])
    stored = stored_label("metres", depth_HW, mirrored_HW, keep_HW=None, farthest_metres=19.8)
    assert stored.agreement_HW is not None
    agreement, *_ = stored.agreement_HW.tolist()
    assert agreement[0] == 255
    assert [agreement[i] for i in (1, 3, 4, 7)] == [0, 0, 0, 0]
    assert agreement[5] == 128
    assert agreement[6] == 1
    np.testing.assert_array_equal(stored.depth_HW > 0, stored.agreement_HW > 0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e6])
def test_inverse_depth_has_a_scale_and_shift_of_its_own(scale: float) -> None:
    depth_HW = scale * row([0.0, 1.0, 2.0, 3.0, NAN, 5.0])
    mirrored_HW = 7 * row([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) + 3
    stored = stored_label("inverse depth", depth_HW, mirrored_HW, keep_HW=None, farthest_metres=1.0)
    expected = np.rint(1 + 65534 * np.array([0, 1, 2, 4]) / 4)
    assert stored.depth_HW[0, [1, 2, 3, 5]].tolist() == pytest.approx(expected.tolist(), abs=1)
    assert stored.depth_HW[0, [0, 4]].tolist() == [0, 0]
    assert stored.agreement_HW is not None
    assert stored.agreement_HW.tolist() == [[0, 255, 255, 255, 0, 255]]


def test_inverse_depth_that_contradicts_itself() -> None:
    depth_HW = np.linspace(1, 2, 101, dtype=np.float32)[None]
    mirrored_HW = depth_HW.copy()
    mirrored_HW[0, 50] += 0.3
    stored = stored_label("inverse depth", depth_HW, mirrored_HW, keep_HW=None, farthest_metres=1.0)
    assert np.flatnonzero(stored.depth_HW == 0).tolist() == [50]


@pytest.mark.parametrize("units", ["metres", "inverse depth"])
@pytest.mark.parametrize("values", [[NAN, NAN], [0.0, 0.0], [3.0, 3.0]])
def test_pictures_without_shape_or_depth(units: Any, values: list[float]) -> None:
    stored = stored_label(units, row(values), row(values), keep_HW=None, farthest_metres=100.0)
    assert stored.agreement_HW is not None
    known = values == [3.0, 3.0]
    assert (stored.depth_HW > 0).tolist() == [[known, known]]
    assert stored.agreement_HW.tolist() == [[255 * known, 255 * known]]

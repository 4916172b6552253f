"""ViewGeometry: a ramp whose value is its own position comes back where it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from clipdepth_plugin.adapters.preprocessing import Preprocessing, ResizeKind
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ViewGeometry, depth_to_points

VIEW = (96, 96)


def geometry(kind: ResizeKind | None, size: tuple[int, int], to: int | None = None) -> ViewGeometry:
    return Preprocessing((0.5,) * 3, (0.5,) * 3, VIEW, kind, to).whole_view(size)


def positions_in_view(g: ViewGeometry) -> Tensor:
    """(2, h, w): for each pixel of the view, the image position (y, x) it shows."""
    axes = [(torch.arange(VIEW[i]) + 0.5 - g.offset[i]) / g.scale[i] - 0.5 for i in (0, 1)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(("squash", "shortest", "pad", "fit", "fit_middle", "fit_end")),
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    to=st.none() | st.integers(96, 130),
)
def test_maps_come_back_where_they_were(
    kind: ResizeKind, size: tuple[int, int], to: int | None
) -> None:
    g = geometry(kind, size, to)
    image_2HW = g.to_image(positions_in_view(g))
    assert image_2HW.shape == (2, *size)
    truth = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    )
    # At the view's rim the nearest sample is held, half a view pixel at most; next to padding the
    # nearest one that shows none of it.
    rim = (1.5 if kind in ("pad", "fit", "fit_middle", "fit_end") else 0.5) / min(g.scale) + 1e-2
    seen = ~torch.isnan(image_2HW)
    assert (image_2HW - truth)[seen].abs().max() <= rim
    if kind != "shortest":
        assert bool(seen.all())


def test_centre_crop_leaves_unseen_margins_as_nan() -> None:
    g = geometry("shortest", (100, 200))
    seen_W = ~torch.isnan(g.to_image(torch.ones(1, 96, 96)))[0, 50]
    assert seen_W.sum() == 100
    assert seen_W[50:150].all()


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    to=st.none() | st.integers(1, 130),
    view=st.tuples(st.integers(1, 100), st.integers(1, 100)),
)
def test_shortest_is_torchvisions_resize_and_centre_crop(
    size: tuple[int, int], to: int | None, view: tuple[int, int]
) -> None:
    g = Preprocessing((0.5,) * 3, (0.5,) * 3, view, "shortest", to).whole_view(size)
    scaled = tv.resize(torch.empty(1, *size), [to or min(view)], antialias=False)
    assert g.scale == (scaled.shape[1] / size[0], scaled.shape[2] / size[1])
    # Each pixel of the crop says where it was, plus one; zeros are padding.
    where = torch.stack(
        torch.meshgrid(*(torch.arange(1, n + 1) for n in scaled.shape[1:]), indexing="ij")
    )
    seen = tv.center_crop(where, list(view))
    assert seen.shape[1:] == view
    for axis in (0, 1):
        line = seen[axis].amax(dim=1 - axis)
        first = int(line.nonzero()[0])
        assert g.offset[axis] == first - (int(line[first]) - 1)


def test_a_long_side_is_not_lost_to_rounding() -> None:
    """224 * (49 / 49) and the like: the quotient first would lose a pixel."""
    for short in range(1, 400):
        g = geometry("shortest", (short, 3 * short), 100)
        assert g.scale[1] * 3 * short == pytest.approx(300)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("squash", (48.0, 96.0, 47.5, 47.5)),
        ("shortest", (96.0, 96.0, 47.5, 47.5)),
        ("pad", (48.0, 48.0, 47.5, 47.5)),
    ],
)
def test_intrinsics(kind: ResizeKind, expected: tuple[float, ...]) -> None:
    """A camera whose axis is the middle of a 100 x 200 picture."""
    got = geometry(kind, (100, 200)).intrinsics((100.0, 100.0, 99.5, 49.5))
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(got, expected, strict=True)), got


def test_points_are_seen_where_their_pixels_are() -> None:
    """Through the camera again each point falls on its pixel, at its depth."""
    depth_1HW = 1 + torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    depth_1HW[0, 2, 3] = torch.nan
    fx, fy, cx, cy = camera = (20.0, 30.0, 3.2, 1.9)
    x_HW, y_HW, z_HW = depth_to_points(depth_1HW, camera).unbind(dim=-1)
    torch.testing.assert_close(z_HW, depth_1HW[0], equal_nan=True)
    seen = z_HW.isfinite()
    assert seen.sum() == 34
    rows_HW, columns_HW = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    torch.testing.assert_close((fx * x_HW / z_HW + cx)[seen], columns_HW[seen])
    torch.testing.assert_close((fy * y_HW / z_HW + cy)[seen], rows_HW[seen])
    with pytest.raises(HostError, match=r"\(2, 5, 7\): expected one map"):
        depth_to_points(torch.ones(2, 5, 7), camera)


@pytest.mark.parametrize(
    "camera",
    [
        (0.0, 30.0, 3.2, 1.9),
        (20.0, -1.0, 3.2, 1.9),
        (math.nan, 30.0, 3.2, 1.9),
        (20.0, 30.0, math.inf, 1.9),
        (20.0, 30.0, 3.2),
        "f",
        None,
        [[20.0, 1.0, 3.2], [0.0, 30.0, 1.9], [0.0, 0.0, 1.0]],
    ],
    ids=str,
)
def test_points_of_no_camera(camera: Any) -> None:
    with pytest.raises(HostError, match=r"intrinsics.*expected"):
        depth_to_points(torch.ones(1, 5, 7), camera)


@pytest.mark.parametrize("odd", [[torch.ones(1, 5, 7)], np.ones((1, 5, 7)), torch.ones(5, 7)])
def test_points_of_no_map(odd: Any) -> None:
    with pytest.raises(HostError, match=r"expected one map, .*\(1, H, W\)"):
        depth_to_points(odd, (20.0, 30.0, 3.2, 1.9))


def test_points_by_a_matrix() -> None:
    matrix_33 = torch.tensor([[20.0, 0.0, 3.25], [0.0, 30.0, 1.5], [0.0, 0.0, 1.0]])
    depth_1HW = torch.ones(1, 5, 7)
    expected = depth_to_points(depth_1HW, (20.0, 30.0, 3.25, 1.5))
    assert torch.equal(depth_to_points(depth_1HW, matrix_33), expected)
    assert torch.equal(depth_to_points(depth_1HW, matrix_33.tolist()), expected)


def test_a_resize_does_not_bend_a_wall() -> None:
    """A squashed view's map, carried back, with the user's own camera: still a flat wall."""
    view = ViewGeometry.squashed((40, 90), (16, 16))
    y_h, x_w = ((torch.arange(16) + 0.5) / scale - 0.5 for scale in view.scale)
    # The wall x + 2 y + 4 z = 8 through a camera of 50 px.
    rays = 4 + (x_w[None] - 44.5) / 50 + 2 * (y_h[:, None] - 19.5) / 50
    depth_1HW = view.to_image((8 / rays)[None])
    points_HW3 = depth_to_points(depth_1HW, (50.0, 50.0, 44.5, 19.5))
    inside = points_HW3[3:-3, 6:-6] @ torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(inside, torch.full_like(inside, 8.0), rtol=0.01, atol=0)


def test_unknown_preprocessing_is_not_guessed() -> None:
    with pytest.raises(HostError, match="processor="):
        geometry(None, (10, 10))

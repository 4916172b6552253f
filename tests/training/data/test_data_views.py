"""Picture, depth and camera stay together through the host's own preprocessing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.adapters.pixels import normalised, to_pixels
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import Sample
from clipdepth_plugin.data.sample import cropped
from clipdepth_plugin.data.views import make_view, resize_depth
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.maps.geometry import ViewGeometry

SQUASH = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (40, 40), "squash")
KINDS: list[Any] = ["squash", "shortest", "pad", None]


def marked_sample(size: tuple[int, int], row: int, column: int) -> tuple[Sample, NDArray[Any]]:
    """A black picture with a white dot, depth 2 m there and 1 m elsewhere; and the dot in 3D."""
    image_3HW = torch.zeros(3, *size, dtype=torch.uint8)
    image_3HW[:, row - 2 : row + 3, column - 2 : column + 3] = 255
    depth_1HW = torch.ones(1, *size)
    depth_1HW[:, row - 2 : row + 3, column - 2 : column + 3] = 2.0
    fx, fy, cx, cy = 50.0, 55.0, size[1] / 2 + 1, size[0] / 2 - 2
    point = np.array([(column - cx) / fx * 2, (row - cy) / fy * 2, 2.0])
    return Sample(image_3HW, depth_1HW, (fx, fy, cx, cy), "marked"), point


def centroid(map_HW: NDArray[Any]) -> tuple[float, float]:
    y_HW, x_HW = np.mgrid[: map_HW.shape[0], : map_HW.shape[1]]
    return float((map_HW * x_HW).sum() / map_HW.sum()), float((map_HW * y_HW).sum() / map_HW.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 80), (80, 60), (37, 53), (20, 30)])
@pytest.mark.parametrize("output", [(40, 40), (20, 30)])
def test_a_known_point_projects_onto_its_picture(
    kind: Any, size: tuple[int, int], output: tuple[int, int]
) -> None:
    sample, (x, y, z) = marked_sample(size, size[0] // 2 + 3, size[1] // 2 - 4)
    # Bilinear has no lobes that are cut off at black, and so keeps the dot's middle.
    dark = replace(SQUASH, resize=kind, mean=(0.0,) * 3, interpolation="bilinear")
    view = make_view(sample, dark, output)
    assert view.rgb_3HW.shape == (3, 40, 40)
    assert view.depth_1hw.shape == (1, *output)
    assert view.intrinsics is not None
    fx, fy, cx, cy = view.intrinsics
    expected = (fx * x / z + cx, fy * y / z + cy)
    assert centroid(view.rgb_3HW[0].numpy()) == pytest.approx(expected, abs=0.1)
    # In the depth map's own pixels; nearest neighbour is good to a pixel.
    across, down = centroid((view.depth_1hw[0] == 2).numpy())
    assert (across + 0.5) * 40 / output[1] - 0.5 == pytest.approx(expected[0], abs=40 / output[1])
    assert (down + 0.5) * 40 / output[0] - 0.5 == pytest.approx(expected[1], abs=40 / output[0])


@pytest.mark.parametrize("size", [(60, 80), (20, 30), (40, 40)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_squashed_pixels_are_those_of_to_pixels(size: tuple[int, int], interpolation: Any) -> None:
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    preprocessing = replace(SQUASH, interpolation=interpolation)
    sample = Sample(torch.from_numpy(rgb_HW3).permute(2, 0, 1), torch.ones(1, *size), None, "noise")
    for kind in ("squash", None):
        view = make_view(sample, replace(preprocessing, resize=kind), (40, 40))
        expected_13HW = to_pixels([Image.fromarray(rgb_HW3)], preprocessing)
        assert torch.equal(normalised(view.rgb_3HW, preprocessing), expected_13HW[0])


def test_centre_crop_is_that_of_the_host() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    sample = Sample(torch.from_numpy(rgb_HW3).permute(2, 0, 1), torch.ones(1, 61, 83), None, "x")
    view = make_view(sample, replace(SQUASH, resize="shortest", resize_to=46), (40, 40))
    resized = transforms.Resize(46, Image.Resampling.BICUBIC)(Image.fromarray(rgb_HW3))
    expected_HW3 = np.asarray(transforms.CenterCrop(40)(resized), dtype=np.float32) / 255
    torch.testing.assert_close(view.rgb_3HW, torch.from_numpy(expected_HW3).permute(2, 0, 1))


def test_padding_is_mean_colour_without_depth() -> None:
    sample = Sample(
        torch.full((3, 20, 40), 255, dtype=torch.uint8), torch.ones(1, 20, 40), None, ""
    )
    preprocessing = replace(SQUASH, resize="pad")
    view = make_view(sample, preprocessing, (20, 20))
    pixels_3HW = normalised(view.rgb_3HW, preprocessing)
    one_step = 1 / 255 / 0.2  # the mean colour is rounded down, as hosts pad
    assert pixels_3HW[:, :10].abs().max() < one_step
    assert pixels_3HW[:, 30:].abs().max() < one_step
    assert (view.rgb_3HW[:, 10:30] == 1).all()
    assert (view.depth_1hw[0, 5:15] == 1).all()
    assert view.depth_1hw.sum() == 200


def slow_resize(
    depth_YX: NDArray[Any], geometry: ViewGeometry, size: tuple[int, int]
) -> NDArray[Any]:
    """The documented rule, pixel by pixel."""
    out_hw = np.zeros(size, np.float32)
    to_map = [count / view for count, view in zip(size, geometry.view_size, strict=True)]
    per_map = [view / count for count, view in zip(size, geometry.view_size, strict=True)]
    place = [
        [
            ((i + 0.5) * geometry.scale[axis] + geometry.offset[axis]) * to_map[axis]
            for i in range(depth_YX.shape[axis])
        ]
        for axis in (0, 1)
    ]
    for row, column in np.ndindex(size):
        source = [
            int(np.floor(((at + 0.5) * per_map[i] - geometry.offset[i]) / geometry.scale[i]))
            for i, at in enumerate((row, column))
        ]
        if all(0 <= one < count for one, count in zip(source, depth_YX.shape, strict=True)):
            out_hw[row, column] = depth_YX[source[0], source[1]]
        if out_hw[row, column] == 0:
            covered = [
                ((place[0][y] - row - 0.5) ** 2 + (place[1][x] - column - 0.5) ** 2, y, x)
                for y, x in zip(*np.nonzero(depth_YX), strict=True)
                if np.floor(place[0][y]) == row and np.floor(place[1][x]) == column
            ]
            if covered:
                nearest = min(distance for distance, *_ in covered)
                choices = [depth_YX[y, x] for d, y, x in covered if d < nearest + 1e-9]
                out_hw[row, column] = choices[0] if len(choices) == 1 else np.nan
    return out_hw


@settings(deadline=None, max_examples=60)
@given(
    stored=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(KINDS),
    share=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_depth_is_nearest_and_sparse_truth_survives(
    stored: tuple[int, int], size: tuple[int, int], kind: Any, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    depth_YX = rng.uniform(1, 2, stored).astype(np.float32)
    depth_YX[rng.random(stored) > share] = 0
    geometry = replace(SQUASH, resize=kind or "squash", size=(12, 9)).whole_view(stored)
    (got_hw,) = resize_depth(depth_YX[None], geometry, size)
    expected_hw = slow_resize(depth_YX, geometry, size)
    tied_hw = np.isnan(expected_hw)  # equally near: any of them
    assert np.array_equal(got_hw[~tied_hw], expected_hw[~tied_hw])
    assert np.isin(got_hw[got_hw > 0], depth_YX).all()
    assert (got_hw[tied_hw] > 0).all()


def test_a_sweep_of_points_is_not_thinned_out() -> None:
    depth_YX = np.zeros((375, 1242), np.float32)
    rng = np.random.default_rng(0)
    depth_YX[rng.integers(0, 375, 3000), rng.integers(0, 1242, 3000)] = 5.0
    geometry = replace(SQUASH, size=(224, 224)).whole_view((375, 1242))
    kept = np.count_nonzero(resize_depth(depth_YX[None], geometry, (224, 224)))
    assert kept > 0.95 * np.count_nonzero(depth_YX)  # plain nearest keeps a ninth


def test_nyu_crop_moves_the_camera() -> None:
    sample, _ = marked_sample((480, 640), 100, 200)
    inside = cropped(sample, "nyu")
    assert inside.image_3HW.shape == (3, 427, 565)
    assert torch.equal(inside.depth_1HW, sample.depth_1HW[:, 45:472, 43:608])
    assert sample.intrinsics is not None
    assert inside.intrinsics == (50.0, 55.0, sample.intrinsics[2] - 43, sample.intrinsics[3] - 45)
    assert cropped(replace(sample, intrinsics=None), "nyu").intrinsics is None
    with pytest.raises(DataError, match="needs a picture of at least"):
        cropped(inside, "nyu")

"""Augmentation moves picture, depth and camera together, and depends on its generator alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.data import AugmentConfig, Sample
from clipdepth_plugin.data.augment import (
    augment,
    flipped,
    is_flipped,
    rotated,
    sample_generator,
    zoomed,
)
from clipdepth_plugin.data.views import View, make_view

OFF: dict[str, Any] = {
    "flip": 0.0,
    "rotation_degrees": 0.0,
    "zoom": (1.0, 1.0),
    "gamma": (1.0, 1.0),
    "brightness": (1.0, 1.0),
    "colour": (1.0, 1.0),
    "probability": 1.0,
}
ANY_SIZE = pytest.mark.parametrize("size", [(61, 61), (60, 90), (90, 50)])


def dotted_view(size: tuple[int, int], output: tuple[int, int] = (48, 64)) -> tuple[View, Any]:
    """A white dot with depth 2 m on black with 1 m, squashed to 64 x 64; and the dot in 3D."""
    row, column = size[0] // 2 + 12, size[1] // 2 - 15
    image_3HW = torch.zeros(3, *size, dtype=torch.uint8)
    image_3HW[:, row - 3 : row + 4, column - 3 : column + 4] = 255
    depth_1HW = torch.ones(1, *size)
    depth_1HW[:, row - 3 : row + 4, column - 3 : column + 4] = 2.0
    camera = (40.0, 40.0, size[1] / 2 + 3, size[0] / 2 - 2)
    point = np.array([(column - camera[2]) / 40 * 2, (row - camera[3]) / 40 * 2, 2.0])
    preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, (64, 64), "squash")
    return make_view(Sample(image_3HW, depth_1HW, camera, ""), preprocessing, output), point


def place(weights_HW: Tensor) -> tuple[float, float]:
    """(x, y) of the middle of what is bright."""
    y_HW, x_HW = torch.meshgrid(*map(torch.arange, weights_HW.shape), indexing="ij")
    total = weights_HW.sum()
    return float((weights_HW * x_HW).sum() / total), float((weights_HW * y_HW).sum() / total)


def assert_sees(view: View, point: Any, factor: float = 1.0) -> None:
    """``factor`` magnifies the steps of the depth map, whose pixels are never averaged."""
    assert view.intrinsics is not None
    fx, fy, cx, cy = view.intrinsics
    expected = (fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy)
    assert place(view.rgb_3HW[0]) == pytest.approx(expected, abs=0.15)
    x, y = place((view.depth_1hw[0] == 2).float())
    height, width = view.depth_1hw.shape[1:]
    assert (x + 0.5) * 64 / width - 0.5 == pytest.approx(expected[0], abs=0.8 * factor)
    assert (y + 0.5) * 64 / height - 0.5 == pytest.approx(expected[1], abs=0.8 * factor)


@ANY_SIZE
def test_flip(size: tuple[int, int]) -> None:
    view, point = dotted_view(size)
    mirrored = flipped(view)
    assert_sees(view, point)
    assert_sees(mirrored, point * (-1, 1, 1))
    assert torch.equal(mirrored.rgb_3HW.flip(2), view.rgb_3HW)
    assert torch.equal(mirrored.depth_1hw.flip(2), view.depth_1hw)
    assert flipped(mirrored).intrinsics == pytest.approx(view.intrinsics)


@ANY_SIZE
@pytest.mark.parametrize("degrees", [-20.0, 1.0, 30.0])
def test_rotation(size: tuple[int, int], degrees: float) -> None:
    view, (x, y, z) = dotted_view(size)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # Counter-clockwise as seen, with y down: the scene turns about the optical axis.
    turned = np.array([cosine * x + sine * y, -sine * x + cosine * y, z])
    assert_sees(rotated(view, degrees), turned)


def test_rotation_brings_in_no_depth_and_averages_none() -> None:
    view, _ = dotted_view((64, 64), (64, 64))
    turned = rotated(view, 10.0)
    assert set(turned.depth_1hw.unique().tolist()) == {0.0, 1.0, 2.0}
    assert turned.depth_1hw[0, 0, 0] == 0
    assert (turned.depth_1hw > 0).float().mean() < 0.95
    assert torch.equal(rotated(view, 0.0).depth_1hw, view.depth_1hw)
    torch.testing.assert_close(rotated(view, 0.0).rgb_3HW, view.rgb_3HW)


@ANY_SIZE
@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("place", [(0.2, 0.8), (0.0, 0.9)])
def test_zoom(size: tuple[int, int], factor: float, place: tuple[float, float]) -> None:
    """A longer lens: the point is seen where the camera says, at the depth that it had."""
    view, point = dotted_view(size)
    zoom = zoomed(view, factor, place)
    assert zoom.intrinsics is not None
    assert view.intrinsics is not None
    assert zoom.intrinsics[:2] == pytest.approx([f * factor for f in view.intrinsics[:2]])
    assert_sees(zoom, point, factor)
    assert set(zoom.depth_1hw.unique().tolist()) == {1.0, 2.0}  # nothing from outside, none mixed


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_zoom_shows_a_corner_of_the_view(place: tuple[float, float]) -> None:
    view = noise_view()
    zoom = zoomed(view, 2.0, place)
    columns, rows = (slice(8, 16) if share else slice(0, 8) for share in place)
    corner_1hw = view.depth_1hw[:, rows, columns]
    torch.testing.assert_close(zoom.depth_1hw[:, ::2, ::2], corner_1hw)
    torch.testing.assert_close(zoom.depth_1hw[:, 1::2, 1::2], corner_1hw)
    mean_3 = view.rgb_3HW[:, rows, columns].mean((1, 2))
    torch.testing.assert_close(zoom.rgb_3HW.mean((1, 2)), mean_3, atol=0.02, rtol=0)


def noise_view() -> View:
    generator = torch.Generator().manual_seed(0)
    rgb_3HW = torch.rand(3, 16, 16, generator=generator) * 0.8 + 0.05
    depth_1HW = torch.rand(1, 16, 16, generator=generator)
    return View(rgb_3HW, depth_1HW, (20.0, 20.0, 7.5, 7.5), 1.0)


def changed(seed: int, /, **options: Any) -> View:
    view, _ = augment(
        noise_view(), AugmentConfig(**{**OFF, **options}), sample_generator(seed, 0, 0)
    )
    return view


def test_colours_stay_in_their_ranges() -> None:
    plain = noise_view()
    ratios = torch.stack([changed(i, colour=(0.9, 1.1)).rgb_3HW / plain.rgb_3HW for i in range(60)])
    for tensor in (ratios.amin((2, 3)), ratios.amax((2, 3))):
        torch.testing.assert_close(tensor, ratios[:, :, 0, 0])  # one factor for each channel
    assert 0.9 <= float(ratios.min()) < 0.92
    assert 1.08 < float(ratios.max()) <= 1.1 + 1e-5
    assert float((ratios[:, 0, 0, 0] - ratios[:, 1, 0, 0]).abs().max()) > 0.05
    bright = torch.stack([changed(i, brightness=(0.9, 1.1)).rgb_3HW for i in range(60)])
    factors = bright / plain.rgb_3HW
    torch.testing.assert_close(factors.amin((1, 2, 3)), factors.amax((1, 2, 3)))
    assert 0.9 <= float(factors.min()) < 0.92
    gammas = torch.stack([changed(i, gamma=(0.9, 1.1)).rgb_3HW for i in range(60)])
    exponents = gammas.log() / plain.rgb_3HW.log()
    torch.testing.assert_close(exponents.amin((1, 2, 3)), exponents.amax((1, 2, 3)))
    assert 0.9 - 1e-4 <= float(exponents.min()) < 0.92
    for i in range(5):
        dark = changed(i, colour=(2.0, 3.0), brightness=(1.0, 3.0))
        assert float(dark.rgb_3HW.max()) <= 1
        assert torch.equal(dark.depth_1hw, plain.depth_1hw)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.5},
        {"rotation_degrees": 1.0},
        {"zoom": (1.0, 1.5)},
        {"gamma": (0.9, 1.1)},
        {"colour": (0.9, 1.1)},
        {"blur": (1.0, 2.0)},
        {"contrast": (0.8, 0.9)},
        {"saturation": (0.0, 0.5)},
        {"noise": (0.02, 0.1)},
        {"jpeg": (20, 60)},
    ],
)
def test_half_the_time(options: dict[str, Any]) -> None:
    plain = noise_view()
    times = sum(
        not torch.equal(changed(seed, **options, probability=0.5).rgb_3HW, plain.rgb_3HW)
        for seed in range(300)
    )
    assert 120 <= times <= 180


CAMERAS: dict[str, Any] = {
    "blur": (0.0, 20.0),
    "contrast": (0.5, 1.5),
    "saturation": (0.0, 1.5),
    "noise": (0.0, 0.2),
    "jpeg": (1, 100),
}


def test_cameras_differ_in_their_pixels_alone() -> None:
    plain = noise_view()
    grey_HW = (plain.rgb_3HW * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    saturated = changed(0, saturation=(0, 0)).rgb_3HW
    torch.testing.assert_close(saturated, grey_HW.expand(3, -1, -1), atol=2e-3, rtol=0)
    flat = changed(0, contrast=(0.5, 0.5)).rgb_3HW
    torch.testing.assert_close(flat, plain.rgb_3HW / 2 + grey_HW.mean() / 2, atol=2e-3, rtol=0)
    blurred = changed(0, blur=(3, 3)).rgb_3HW
    assert blurred.std() < 0.3 * plain.rgb_3HW.std()
    assert torch.equal(changed(0, blur=(1e-9, 1e-9)).rgb_3HW, plain.rgb_3HW)
    noise = (changed(0, noise=(0.03, 0.03)).rgb_3HW - plain.rgb_3HW).std()
    assert float(noise) == pytest.approx(0.03, rel=0.15)
    lost = [
        float((changed(0, jpeg=(q, q)).rgb_3HW - plain.rgb_3HW).abs().mean()) for q in (1, 50, 100)
    ]
    assert lost == sorted(lost, reverse=True)
    for seed in range(30):
        all_of_them = changed(seed, **CAMERAS)
        assert 0 <= float(all_of_them.rgb_3HW.min()) <= float(all_of_them.rgb_3HW.max()) <= 1
        assert torch.equal(all_of_them.depth_1hw, plain.depth_1hw)
        assert all_of_them.intrinsics == plain.intrinsics
        again = changed(seed, **CAMERAS)
        assert torch.equal(again.rgb_3HW, all_of_them.rgb_3HW)


def test_views_of_configs_without_the_later_parts_are_as_they_were() -> None:
    """Pixels and key of a cached view, as release 0.1 made them."""
    config = AugmentConfig(zoom=(1.0, 1.5), rotation_degrees=2.0, probability=0.9)
    assert config.recipe() == (
        '{"flip":0.5,"rotation_degrees":2.0,"zoom":[1.0,1.5],"gamma":[0.9,1.1],'
        '"brightness":[0.9,1.1],"colour":[0.9,1.1],"probability":0.9}'
    )
    rgb_3HW = augment(noise_view(), config, sample_generator(1, 2, 3))[0].rgb_3HW
    assert rgb_3HW[:, 3, 5].tolist() == pytest.approx([0.435206, 0.376409, 0.862845], abs=1e-5)
    other = config.model_copy(update={"blur": (0.0, 2.0)})
    assert '"blur":[0.0,2.0]' in other.recipe()
    assert "jpeg" not in other.recipe()


def test_switching_one_part_off_leaves_the_others() -> None:
    for seed in range(20):
        both = changed(seed, flip=0.5, colour=(0.9, 1.1), probability=0.5)
        one = changed(seed, flip=0.5, probability=0.5)
        assert torch.equal(both.depth_1hw, one.depth_1hw)
        config = AugmentConfig(**{**OFF, "flip": 0.5, "probability": 0.5})
        flips = is_flipped(config, sample_generator(seed, 0, 0))
        assert flips == (not torch.equal(one.depth_1hw, noise_view().depth_1hw))
    assert not is_flipped(None, sample_generator(0, 0, 0))


def test_generators_differ_and_repeat() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 11, 1)]
    first = [torch.rand(1, generator=sample_generator(*key)).item() for key in keys]
    again = [torch.rand(1, generator=sample_generator(*key)).item() for key in keys]
    assert first == again
    assert len(set(first)) == len(keys)


def test_the_global_random_state_is_left_alone() -> None:
    def drawn(*, augmenting: bool) -> tuple[float, float, float]:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        if augmenting:
            augment(noise_view(), AugmentConfig(probability=1.0), sample_generator(0, 0, 0))
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    assert drawn(augmenting=True) == drawn(augmenting=False)

"""Random augmentation of a view: picture, depth, its weight and camera together (kornia).

Every sample has a generator of its own, seeded by (seed, epoch, index, repeat) alone, so its
augmentation depends neither on other samples nor on workers and processes. What a part draws does
not depend on whether the config enables others.

Axes: H W pixels of the tower's input, h w of the depth map, C depth and weight, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.data.photometric import PHOTOMETRIC
from clipdepth_plugin.data.seeds import mixed_seed
from clipdepth_plugin.data.views import View

if TYPE_CHECKING:
    from clipdepth_plugin.arguments import Intrinsics
    from clipdepth_plugin.data.augment_config import AugmentConfig

_DRAWS = 15
"""Random numbers of the parts up to ``colour``; those of ``PHOTOMETRIC`` are drawn after them."""


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> torch.Generator:
    """The random numbers of one sample in one epoch, for its ``repeat``-th use there (from 0).

    ``index``: of the sample, or any number of its own.
    """
    return torch.Generator().manual_seed(mixed_seed("sample", seed, epoch, index, repeat))


def is_flipped(config: AugmentConfig | None, generator: torch.Generator) -> bool:
    """Whether ``augment`` would flip with this (fresh) generator; for views that are cached."""
    return config is not None and _flips(config, _draw(generator))


def augment(view: View, config: AugmentConfig, generator: torch.Generator) -> tuple[View, bool]:
    """Augments a view at random.

    Rotation is about the view's middle, bilinear for the picture and nearest for the depth. Pixels
    from outside repeat the border's colour and have no depth. fx and fy stay, which is exact where
    the stored picture's pixels are square.

    Args:
        view: As ``make_view`` gives it.
        config: Ranges and probabilities.
        generator: See ``sample_generator``.

    Returns:
        The new view, and whether it is flipped.
    """
    draws = _draw(generator)
    _, rotates, angle, brightens, brightness, bends, gamma, colours = draws[:8]
    zooms, zoom, *place = draws[11:]
    if config.zoom != (1.0, 1.0) and zooms < config.probability:
        view = zoomed(view, _within(config.zoom, zoom), (place[0], place[1]))
    if config.rotation_degrees > 0 and rotates < config.probability:
        view = rotated(view, (2 * angle - 1) * config.rotation_degrees)
    rgb_3HW = view.rgb_3HW
    if config.gamma != (1.0, 1.0) and bends < config.probability:
        rgb_3HW = _gamma(rgb_3HW, _within(config.gamma, gamma))
    if config.brightness != (1.0, 1.0) and brightens < config.probability:
        rgb_3HW = (rgb_3HW * _within(config.brightness, brightness)).clamp(0.0, 1.0)
    if config.colour != (1.0, 1.0) and colours < config.probability:
        factors = [_within(config.colour, one) for one in draws[8:11]]
        rgb_3HW = (rgb_3HW * torch.tensor(factors).view(3, 1, 1)).clamp(0.0, 1.0)
    later_P2 = torch.rand(len(PHOTOMETRIC), 2, generator=generator).tolist()
    for (part, change), (drawn, share) in zip(PHOTOMETRIC.items(), later_P2, strict=True):
        if config.asks(part) and drawn < config.probability:
            amount = _within(getattr(config, part), share)
            rgb_3HW = change(rgb_3HW, amount, generator).clamp(0.0, 1.0)
    view = replace(view, rgb_3HW=rgb_3HW)
    flips = _flips(config, draws)
    return (flipped(view) if flips else view), flips


def flipped(view: View) -> View:
    """The mirror image, left to right."""
    from kornia.geometry.transform import hflip

    camera, weight_1hw = view.intrinsics, view.weight_1hw
    if camera is not None:
        fx, fy, cx, cy = camera
        camera = (fx, fy, view.rgb_3HW.shape[2] - 1 - cx, cy)
    weight_1hw = None if weight_1hw is None else hflip(weight_1hw)
    return View(hflip(view.rgb_3HW), hflip(view.depth_1hw), camera, view.aspect, weight_1hw)


def rotated(view: View, degrees: float) -> View:
    """The view turned about its middle, counter-clockwise as one looks at it.

    The turn is rigid in the stored picture: where a squashed view has pixels that are not square,
    it is sheared accordingly.
    """
    return _warped(view, lambda size, aspect: _rotation(degrees, aspect, size))


def zoomed(view: View, factor: float, place: tuple[float, float]) -> View:
    """A window of the view, magnified to the whole, as a lens of ``factor`` times the focal length.

    ``place`` is the window's, from 0 (left, top) to 1. Depths stay; the camera says what changed.
    """
    zoom = _warped(view, lambda size, _: _zoom(factor, place, size))
    if zoom.intrinsics is None:
        return zoom
    fx, fy, cx, cy = zoom.intrinsics
    return replace(zoom, intrinsics=(fx * factor, fy * factor, cx, cy))


def _warped(view: View, make_matrix: Callable[[torch.Size, float], Tensor]) -> View:
    """Moves picture, depth and the camera's centre by one affine map.

    ``make_matrix`` gives its (2, 3) matrix on the pixel coordinates (x right, y down) of a map,
    from that map's size and from the width over height of a square in it.
    """
    from kornia.geometry.transform import warp_affine

    size_HW, size_hw = view.rgb_3HW.shape[1:], view.depth_1hw.shape[1:]
    matrix_23 = make_matrix(size_HW, view.aspect)
    rgb_13HW = warp_affine(
        view.rgb_3HW[None],
        matrix_23[None],
        (size_HW[0], size_HW[1]),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    # A square of the picture has another shape in a depth map of another shape.
    aspect_hw = view.aspect * (size_hw[1] / size_HW[1]) / (size_hw[0] / size_HW[0])
    weights = [] if view.weight_1hw is None else [view.weight_1hw.float()]
    maps_1Chw = warp_affine(
        torch.cat([view.depth_1hw, *weights])[None],
        make_matrix(size_hw, aspect_hw)[None],
        (size_hw[0], size_hw[1]),
        mode="nearest",
        padding_mode="zeros",
        align_corners=True,
    )
    depth_1hw, *moved = maps_1Chw[0].split(1)
    weight_1hw = moved[0].to(torch.uint8) if moved else None
    camera = _moved(view.intrinsics, matrix_23)
    return View(rgb_13HW[0], depth_1hw, camera, view.aspect, weight_1hw)


def _rotation(degrees: float, aspect: float, size: torch.Size) -> Tensor:
    """(2, 3) matrix on pixel coordinates (x right, y down) of a map of ``size``."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    (a, b), (c, d) = (cosine, sine * aspect), (-sine / aspect, cosine)
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    return torch.tensor([[a, b, x - a * x - b * y], [c, d, y - c * x - d * y]])


def _zoom(factor: float, place: tuple[float, float], size: torch.Size) -> Tensor:
    """(2, 3) matrix on pixel coordinates of a map of ``size``: its window becomes the whole."""
    hidden = 1 - 1 / factor
    # From pixel edges, which are half a pixel from the middles that coordinates count from.
    x, y = (
        factor * (0.5 - share * hidden * side) - 0.5
        for share, side in zip(place, (size[1], size[0]), strict=True)
    )
    return torch.tensor([[factor, 0.0, x], [0.0, factor, y]])


def _moved(camera: Intrinsics | None, matrix_23: Tensor) -> Intrinsics | None:
    if camera is None:
        return None
    fx, fy, cx, cy = camera
    x, y = (matrix_23 @ torch.tensor([cx, cy, 1.0])).tolist()
    return fx, fy, x, y


def _gamma(rgb_3HW: Tensor, gamma: float) -> Tensor:
    from kornia.enhance import adjust_gamma

    changed: Tensor = adjust_gamma(rgb_3HW, gamma)
    return changed


def _draw(generator: torch.Generator) -> list[float]:
    draws: list[float] = torch.rand(_DRAWS, generator=generator).tolist()
    return draws


def _flips(config: AugmentConfig, draws: list[float]) -> bool:
    return draws[0] < config.flip


def _within(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share

"""Augmentation of a picture's pixels alone, as cameras differ: lens, sensor, processing (kornia).

Axes: H W pixels of the tower's input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _blur(rgb_3HW: Tensor, sigma: float, _: torch.Generator) -> Tensor:
    from kornia.filters import gaussian_blur2d

    radius = round(3 * sigma)
    if radius == 0:
        return rgb_3HW
    sides = (2 * radius + 1,) * 2
    # Repeated borders: a reflection can't be larger than the picture.
    blurred_13HW: Tensor = gaussian_blur2d(rgb_3HW[None], sides, (sigma, sigma), "replicate")
    return blurred_13HW[0]


def _contrast(rgb_3HW: Tensor, factor: float, _: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    changed: Tensor = adjust_contrast_with_mean_subtraction(rgb_3HW, factor)
    return changed


def _saturation(rgb_3HW: Tensor, factor: float, _: torch.Generator) -> Tensor:
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    changed: Tensor = adjust_saturation_with_gray_subtraction(rgb_3HW, factor)
    return changed


def _noise(rgb_3HW: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return rgb_3HW + deviation * torch.randn(rgb_3HW.shape, generator=generator)


def _jpeg(rgb_3HW: Tensor, quality: float, _: torch.Generator) -> Tensor:
    from kornia.enhance import jpeg_codec_differentiable

    coded_13HW: Tensor = jpeg_codec_differentiable(rgb_3HW[None], torch.tensor([quality]))
    return coded_13HW[0]


PHOTOMETRIC: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "blur": _blur,
    "contrast": _contrast,
    "saturation": _saturation,
    "noise": _noise,
    "jpeg": _jpeg,
}
"""Field of ``AugmentConfig`` -> (RGB in 0..1, drawn amount, generator) -> RGB, in this order."""

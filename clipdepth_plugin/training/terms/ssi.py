"""The scale-and-shift-invariant error in inverse depth, for heads of relative depth.

As MiDaS (arXiv 1907.01341, section 5): inverse depths, predicted and true, less their median and
over their mean absolute deviation, each picture's own, are compared.

Axes: B views, H W a map's size, N its pixels. Truth is inverse depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.maps.alignment import normalised
from clipdepth_plugin.settings import Weight
from clipdepth_plugin.training.terms.gradient import difference_moments
from clipdepth_plugin.training.terms.term import (
    LossTerm,
    Part,
    Truth,
    mean_from_moments,
    trimmed,
    wide,
)

_DEFAULTS = {"ssi": 1.0, "ssi_gradient": 0.5}
"""For heads of relative depth; MiDaS has the same proportion."""


class Ssi(LossTerm):
    """Scale-and-shift-invariant error."""

    ssi: Weight = 0.0
    """Weight of the scale-and-shift-invariant error in inverse depth, for heads with
    ``metric: false`` alone, whose default it is (1.0): the mean over pictures of each picture's
    mean."""

    ssi_gradient: Weight = 0.0
    """Weight of multi-scale gradient matching (``gradient_scales``) of the same aligned inverse
    depths; such a head's default is 0.5."""

    gradient_scales: int

    def parts(self) -> Iterator[Part]:
        """See ``LossTerm``."""
        part = partial(Part, value=mean_from_moments, metric=False)
        trim, scales = self.trim, self.gradient_scales

        def aligned(given_B1HW: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
            return aligned_error(given_B1HW.clamp_min(self.min_depth), truth)

        yield part(
            "ssi",
            self.ssi,
            lambda given, truth: picture_moments(*aligned(given.depth, truth), trim),
        )
        yield part(
            "ssi_gradient",
            self.ssi_gradient,
            lambda given, truth: difference_moments(*aligned(given.depth, truth), scales),
        )

    def defaults_for(self, head: HeadConfig) -> dict[str, Any]:
        """See ``LossTerm``."""
        given = self.model_fields_set
        return {} if head.metric else {k: v for k, v in _DEFAULTS.items() if k not in given}


def aligned_error(pred_B1HW: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
    """The difference of predicted and true inverse depth, both normalised.

    Args:
        pred_B1HW: Relative depth above 0, larger is farther.
        truth: Its depth is inverse depth.

    Returns:
        (B, 1, H, W) float64, 0 where not valid; and the truth without the pictures whose inverse
        depth does not vary, from which there is nothing to learn.
    """
    pred_BN = wide(torch.where(truth.valid_B1HW, pred_B1HW, 1.0).flatten(1)).reciprocal()
    weight_BN = truth.wide_weights()
    target_BN, varies_B = normalised(wide(truth.depth_B1HW.flatten(1)), weight_BN)
    error_BN = normalised(pred_BN, weight_BN)[0] - target_BN
    varies_B111 = varies_B[:, None, None, None]
    error_B1HW = error_BN.view_as(pred_B1HW).masked_fill(~(truth.valid_B1HW & varies_B111), 0)
    return error_B1HW, truth._replace(valid_B1HW=truth.valid_B1HW & varies_B111)


def picture_moments(error_B1HW: Tensor, truth: Truth, trim: float = 0.0) -> Tensor:
    """Sum over pictures of the mean |error| of each, and number of pictures that have one.

    Returns:
        (1, 2) float64.
    """
    truth = trimmed(truth, error_B1HW, trim)
    weight_BN = truth.wide_weights()
    total_B = weight_BN.sum(dim=1)
    mean_B = (weight_BN * error_B1HW.abs().flatten(1)).sum(dim=1) / total_B.where(total_B > 0, 1.0)
    return torch.stack([mean_B.sum(), (total_B > 0).sum().to(mean_B.dtype)])[None]

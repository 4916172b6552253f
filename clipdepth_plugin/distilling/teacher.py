"""A depth source as a predictor, so that teacher and student are measured by the same protocol.

Axes: C depth and confidence, H W a picture's own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipdepth_plugin.data import Sample
from clipdepth_plugin.labelling.source import DepthSource, Picture
from clipdepth_plugin.maps.alignment import inverse_of


class TeacherPredictor:
    """See ``evaluation.predictors.Predictor``.

    Attributes:
        relative: Whether it gives relative depth, no metres.
    """

    def __init__(self, source: DepthSource) -> None:
        """Keeps the source."""
        self.relative = source.card.units != "metres"
        self._source = source

    def __call__(self, samples: Sequence[Sample]) -> list[Tensor]:
        """One map for each picture; what a relative source gives is inverted."""
        pictures = [
            Picture(one.name, one.image_3HW.permute(1, 2, 0).numpy(), one.intrinsics)
            for one in samples
        ]
        maps = []
        for label in self._source.label(pictures):
            depth_HW = torch.from_numpy(label.depth_HW)
            parts = [inverse_of(_unit_range(depth_HW)) if self.relative else depth_HW]
            if label.confidence_HW is not None:
                parts.append(torch.from_numpy(label.confidence_HW))
            maps.append(torch.stack(parts))
        return maps


def _unit_range(inverse_HW: Tensor) -> Tensor:
    """Within 0.01 and 1: a relative source's scale and shift mean nothing, and are aligned.

    As they are, they could lie where ``inverse_of`` bounds what is near.
    """
    finite_N = inverse_HW[inverse_HW.isfinite()].double()
    if not finite_N.numel():
        return inverse_HW
    low, high = finite_N.min(), finite_N.max()
    share_HW = (inverse_HW.double() - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
    return (0.01 + 0.99 * share_HW).to(inverse_HW.dtype)

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
            parts = [inverse_of(depth_HW) if self.relative else depth_HW]
            if label.confidence_HW is not None:
                parts.append(torch.from_numpy(label.confidence_HW))
            maps.append(torch.stack(parts))
        return maps

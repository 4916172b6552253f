"""A depth source as a predictor, so that teacher and student are measured by the same protocol.

Axes: C metres and confidence, H W a picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipdepth_plugin.data import Sample
from clipdepth_plugin.labelling.source import DepthSource, Picture


def teacher_predictor(source: DepthSource) -> Callable[[Sequence[Sample]], list[Tensor]]:
    """A predictor as ``evaluation.evaluate`` takes it; for sources of metres."""

    def predict(samples: Sequence[Sample]) -> list[Tensor]:
        pictures = [
            Picture(one.name, one.image_3HW.permute(1, 2, 0).numpy(), one.intrinsics)
            for one in samples
        ]
        maps = []
        for label in source.label(pictures):
            parts = [label.depth_HW]
            if label.confidence_HW is not None:
                parts.append(label.confidence_HW)
            maps.append(torch.stack([torch.from_numpy(part) for part in parts]))
        return maps

    return predict

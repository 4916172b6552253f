"""The image grid: RGB, truth, prediction and error of the best, median and worst pictures.

Axes: H W pixels of one picture, C colours. Depths in metres.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipdepth_plugin.evaluation.evaluate import EvaluationResult, ImageRow, iterate
from clipdepth_plugin.evaluation.metrics import Alignment
from clipdepth_plugin.evaluation.predictors import Predictor, predict_samples
from clipdepth_plugin.evaluation.protocols import Protocol
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.colours import Panel, comparison, image_grid

if TYPE_CHECKING:
    from clipdepth_plugin.data import Sample

IMAGE_GRID_FILE = "pictures.png"


def choose_rows(result: EvaluationResult, alignment: Alignment, count: int) -> list[list[ImageRow]]:
    """The best, the median and the worst pictures by AbsRel, no picture twice.

    Args:
        result: The figures.
        alignment: Of which AbsRel.
        count: How many of each kind, where there are enough pictures.
    """
    rows = result.ranked(alignment)
    count = max(1, min(count, len(rows) // 3))
    middle = (len(rows) - count) // 2
    best, median, worst = rows[:count], rows[middle : middle + count], rows[-count:]
    seen: set[int] = set()
    chosen = []
    for group in (best, worst, median):
        chosen.append([row for row in group if row.index not in seen])
        seen |= {row.index for row in group}
    return [chosen[0], chosen[2], chosen[1]]


def write_image_grid(
    path: Path,
    result: EvaluationResult,
    predict: Predictor,
    dataset: Any,
    *,
    alignment: Alignment = "none",
    count: int = 3,
) -> None:
    """Predicts the chosen pictures once more and draws them (``files.colours.comparison``).

    Raises:
        DepthFileError: matplotlib is missing, or the file can't be written.
    """
    groups = choose_rows(result, alignment, count)
    samples = _fetch(dataset, {row.index for group in groups for row in group})
    protocol = result.protocol
    rows = []
    for kind, group in zip(("best", "median", "worst"), groups, strict=True):
        for row in group:
            sample = samples[row.index]
            pred_HW = predict_samples(predict, [sample], protocol)[0].metres_HW.double()
            title = f"{kind}: AbsRel {row.metrics[alignment]['abs_rel']:.3f}\n{row.name}"
            rows.append(_panels(sample, pred_HW * row.scales[alignment], protocol, title))
    write_atomically(path, image_grid(rows))


def _fetch(dataset: Any, indices: set[int]) -> dict[int, Sample]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return {index: dataset[index] for index in indices}
    read = islice(iterate(dataset), max(indices) + 1)
    return {index: sample for index, sample in enumerate(read) if index in indices}


def _panels(sample: Sample, scaled_HW: Tensor, protocol: Protocol, title: str) -> list[Panel]:
    valid_HW = protocol.valid(sample.depth_1HW[0], sample.name)
    return comparison(
        sample.image_3HW.permute(1, 2, 0).numpy(),
        torch.where(valid_HW, sample.depth_1HW[0].double(), torch.nan).numpy(),
        scaled_HW.clamp(protocol.low, protocol.high).numpy(),
        title,
    )

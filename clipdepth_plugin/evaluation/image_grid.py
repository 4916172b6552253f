"""The image grid: RGB, truth, prediction and error of the best, median and worst pictures.

Axes: H W pixels of one picture, C colours. Depths in metres.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.evaluation.evaluate import EvaluationResult, ImageRow
from clipdepth_plugin.evaluation.metrics import Alignment
from clipdepth_plugin.evaluation.predictors import Predictor, predict_samples
from clipdepth_plugin.files.atomic import write_file
from clipdepth_plugin.files.colours import comparison, image_grid

if TYPE_CHECKING:
    from clipdepth_plugin.data import Sample


def choose_rows(
    result: EvaluationResult, alignment: Alignment, count: int
) -> list[tuple[str, ImageRow]]:
    """("best", "median" or "worst", row) by AbsRel, best first: ``count`` of each, none twice."""
    rows = sorted(result.rows, key=lambda row: row.metrics[alignment]["abs_rel"])
    count = max(1, min(count, len(rows) // 3))
    middle = (len(rows) - count) // 2
    kinds = dict.fromkeys(range(middle, middle + count), "median")
    kinds |= dict.fromkeys(range(len(rows) - count, len(rows)), "worst")
    kinds |= dict.fromkeys(range(count), "best")
    return [(kinds[place], rows[place]) for place in sorted(kinds)]


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
    chosen = choose_rows(result, alignment, count)
    samples = _fetch(dataset, {row.index for _, row in chosen})
    protocol = result.protocol
    rows = []
    for kind, row in chosen:
        sample = samples[row.index]
        depth_HW = sample.depth_1HW[0].double()
        valid_HW = protocol.valid(depth_HW, sample.name)
        pred_HW = predict_samples(predict, [sample], protocol)[0].metres_HW.double()
        scaled_HW = pred_HW * row.scales[alignment]
        rows.append(
            comparison(
                sample.image_3HW.permute(1, 2, 0).numpy(),
                torch.where(valid_HW, depth_HW, torch.nan).numpy(),
                scaled_HW.clamp(protocol.low, protocol.high).numpy(),
                f"{kind}: AbsRel {row.metrics[alignment]['abs_rel']:.3f}\n{row.name}",
            )
        )
    write_file(path, image_grid(rows), DepthFileError)


def _fetch(dataset: Any, indices: set[int]) -> dict[int, Sample]:
    if hasattr(dataset, "__getitem__"):
        return {index: dataset[index] for index in indices}
    read = enumerate(islice(dataset, max(indices) + 1))
    return {index: sample for index, sample in read if index in indices}

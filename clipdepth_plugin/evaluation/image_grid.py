"""The picture sheet: RGB, truth, prediction and error of the best, median and worst pictures.

Axes: H W pixels of one picture. Depths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.evaluation.evaluate import EvaluationResult, ImageRow, iterate
from clipdepth_plugin.evaluation.metrics import Alignment
from clipdepth_plugin.evaluation.predictors import Predictor, predict_samples
from clipdepth_plugin.files.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from clipdepth_plugin.data import Sample

SHEET_FILE = "pictures.png"

_DPI = 100
_PANEL_INCHES = 3.2
_LABEL_INCHES = 0.45
_TALLEST = 2.0
"""Height over width of a panel, at the most; taller pictures are drawn smaller."""

_LARGEST_PIXELS = 65_535  # of the canvas of matplotlib before 3.11
MAX_PICTURES = int(_LARGEST_PIXELS / _DPI / (_PANEL_INCHES * _TALLEST + _LABEL_INCHES)) // 3
"""Of each kind: so many fit on a sheet whatever their shape."""

_ERROR_END = 0.5
_SPARSE = 0.2


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the sheet; maps are NaN where there is nothing to show."""

    label: str
    image_HWC: NDArray[np.uint8]
    depth_HW: NDArray[np.float64]
    pred_HW: NDArray[np.float64]
    error_HW: NDArray[np.float64]


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


def check_count(count: int) -> None:
    """Refuses more pictures than a sheet can show.

    Raises:
        DepthFileError: There are.
    """
    if count > MAX_PICTURES:
        raise DepthFileError(
            f"--pictures {count}: a sheet has room for {MAX_PICTURES} of each kind; give that or "
            "less (images.csv has the figures of every picture)"
        )


def write_sheet(
    path: Path,
    result: EvaluationResult,
    predict: Predictor,
    dataset: Any,
    *,
    alignment: Alignment = "none",
    count: int = 3,
) -> None:
    """Predicts the chosen pictures once more and draws them.

    Truth and prediction share the colours of the truth's 1st to 99th percentile; the error is
    |prediction - truth| / truth, up to 0.5. Pixels that do not count are grey; points of sparse
    truth are drawn 5 x 5 pixels large.

    Raises:
        DepthFileError: matplotlib is missing, ``count`` is too large for a picture, or the file
            can't be written.
    """
    check_count(count)
    groups = choose_rows(result, alignment, count)
    rows = {row.index: row for group in groups for row in group}
    samples = _fetch(dataset, set(rows))
    lines = []
    for kind, group in zip(("best", "median", "worst"), groups, strict=True):
        for row in group:
            sample = samples[row.index]
            pred_HW = (
                predict_samples(predict, [sample], result.protocol)[0].metres_HW.double().numpy()
            )
            label = f"{kind}: AbsRel {row.metrics[alignment]['abs_rel']:.3f}\n{row.name}"
            lines.append(_line(label, sample, pred_HW, row.scales[alignment], result))
    _draw(path, lines)


def _fetch(dataset: Any, indices: set[int]) -> dict[int, Sample]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return {index: dataset[index] for index in indices}
    read = islice(iterate(dataset), max(indices) + 1)
    return {index: sample for index, sample in enumerate(read) if index in indices}


def _line(
    label: str,
    sample: Sample,
    pred_HW: NDArray[np.float64],
    scale: float,
    result: EvaluationResult,
) -> _Line:
    protocol = result.protocol
    depth_HW = sample.depth_1HW[0].double().numpy()
    valid_HW = protocol.valid(sample.depth_1HW[0], sample.name).numpy()
    pred_HW = np.clip(np.maximum(pred_HW, protocol.low) * scale, protocol.low, protocol.high)
    safe_HW = np.where(valid_HW, depth_HW, 1.0)
    error_HW = np.where(valid_HW, np.abs(pred_HW - depth_HW) / safe_HW, np.nan)
    image_HWC = sample.image_3HW.permute(1, 2, 0).numpy()
    return _Line(label, image_HWC, np.where(valid_HW, depth_HW, np.nan), pred_HW, error_HW)


def _draw(path: Path, lines: list[_Line]) -> None:
    """On a canvas of its own: pyplot's global state is not touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DepthFileError(
            'the picture sheet needs matplotlib: pip install "clipdepth-plugin[cli]"'
        ) from error
    height, width = lines[0].depth_HW.shape
    ratio = min(max(height / width, 0.25), _TALLEST)
    panel = (_PANEL_INCHES, _PANEL_INCHES * ratio + _LABEL_INCHES)
    figure = Figure((panel[0] * 4 + 1.2, panel[1] * len(lines)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), 4, squeeze=False)
    for axes_4, line in zip(axes, lines, strict=True):
        _draw_line(axes_4, line)
    for axis, title in zip(axes[0, 1:], ("truth", "prediction", "error"), strict=True):
        axis.set_title(title, fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=_DPI))


def _draw_line(axes: NDArray[Any], line: _Line) -> None:
    low, high = np.nanpercentile(line.depth_HW, (1, 99))
    # A constant depth still needs a scale with two ends.
    ends = (float(low), float(max(high, low * 1.01)))
    axes[0].imshow(line.image_HWC)
    # A name may have dollar signs in it, which are no formula.
    axes[0].set_title(line.label, fontsize=7, loc="left", parse_math=False)
    _show(axes[1], line.depth_HW, "turbo_r", ends, "")
    _show(axes[2], line.pred_HW, "turbo_r", ends, "m")
    _show(axes[3], line.error_HW, "magma", (0.0, _ERROR_END), "of truth")
    for axis in axes:
        axis.set_axis_off()


def _show(
    axis: Axes, map_HW: NDArray[np.float64], colours: str, ends: tuple[float, float], unit: str
) -> None:
    import matplotlib as mpl

    with_grey = mpl.colormaps[colours].with_extremes(bad="0.5")
    masked_HW = np.ma.masked_invalid(_thickened(map_HW))
    drawn = axis.imshow(
        masked_HW, cmap=with_grey, vmin=ends[0], vmax=ends[1], interpolation="nearest"
    )
    if unit:
        figure = axis.get_figure(root=True)
        assert figure is not None
        figure.colorbar(drawn, ax=axis, label=unit, extend="both" if unit == "m" else "max")


def _thickened(map_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of sparse maps 5 x 5 pixels large, so that they are seen."""
    if np.isfinite(map_HW).mean() > _SPARSE:
        return map_HW
    thick_HW = map_HW.copy()
    for axis in (0, 1):
        for step in (-1, 1, -1, 1):
            moved_HW = np.roll(thick_HW, step, axis)
            thick_HW = np.where(np.isfinite(thick_HW), thick_HW, moved_HW)
    return thick_HW

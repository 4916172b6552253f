"""Depth in colours: image grids with colour bars, drawn once for predict, eval and training.

Axes: H W pixels of a picture or a map, C its three colours. Depths in metres.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import DepthFileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_ROW_INCHES = 0.45
"""Of a row, beside its panels: the titles."""

_BAR_INCHES = 1.4
_WORST_ERROR = 0.5
_SPARSE = 0.2


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of an image grid.

    Attributes:
        shown: A picture, (H, W, 3) uint8; or an (H, W) map, whose NaNs are drawn grey.
        title: What stands above it.
        ends: Of a map: the values at both ends of its colours.
        bar: Of a map: what its colour bar measures; "" draws none.
        colours: Of a map: a colour map of matplotlib.
    """

    shown: NDArray[Any]
    title: str = ""
    ends: tuple[float, float] = (0.0, 1.0)
    bar: str = ""
    colours: str = "turbo_r"


def depth_panel(depth_HW: NDArray[Any], title: str = "", bar: str = "depth [m]") -> Panel:
    """A depth map: near is red, far is blue, no depth (NaN, infinite, not above 0) is grey.

    The colours run from the map's 1st to its 99th percentile.
    """
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    ends = _depth_ends(depth_HW[valid_HW])
    return Panel(np.where(valid_HW, depth_HW, np.nan), title, ends, bar)


def comparison(
    image_HWC: NDArray[np.uint8], depth_HW: NDArray[Any], pred_HW: NDArray[Any], title: str = ""
) -> list[Panel]:
    """A row of an image grid: picture, truth, prediction and error.

    Truth and prediction share the truth's colours; the error is |prediction - truth| / truth, up to
    0.5. Points of sparse truth are drawn 5 x 5 pixels large.

    Args:
        image_HWC: The picture.
        depth_HW: True metres; NaN or 0 is none.
        pred_HW: Predicted metres.
        title: Above the picture.
    """
    truth = depth_panel(depth_HW, "truth", bar="")
    error_HW = np.abs(pred_HW - truth.shown) / truth.shown
    return [
        Panel(image_HWC, title),
        Panel(_thickened(truth.shown), "truth", truth.ends),
        Panel(pred_HW, "prediction", truth.ends, "depth [m]"),
        Panel(_thickened(error_HW), "error", (0.0, _WORST_ERROR), "of truth", "magma"),
    ]


def image_grid(
    rows: Sequence[Sequence[Panel]],
    *,
    panel_inches: float = 3.2,
    note: dict[str, str] | None = None,
) -> bytes:
    """Draws panels in rows, on a canvas of its own: pyplot's global state is not touched.

    Args:
        rows: Of one length each; the first panel's shape is taken for all.
        panel_inches: Long side of a panel; an inch has 100 pixels.
        note: Text chunks of the PNG.

    Returns:
        The content of a PNG file.

    Raises:
        DepthFileError: matplotlib is missing.
    """
    height, width = rows[0][0].shown.shape[:2]
    ratio = min(max(height / width, 0.25), 4.0)
    panel = np.array([1.0, ratio]) / max(1.0, ratio) * panel_inches
    size = (panel[0] * len(rows[0]) + _BAR_INCHES, max(panel[1], 1.0) * len(rows))
    figure = _figure(float(size[0]), float(size[1]) + _ROW_INCHES * len(rows))
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, panels in zip(grid, rows, strict=True):
        for axis, one in zip(axes, panels, strict=True):
            _draw(figure, axis, one)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, metadata=note)
    return content.getvalue()


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DepthFileError(
            'colour pictures need matplotlib: pip install "clipdepth-plugin[cli]"'
        ) from error
    figure = Figure((width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(figure: Figure, axis: Axes, panel: Panel) -> None:
    import matplotlib as mpl

    axis.set_axis_off()
    # A name may have dollar signs in it, which are no formula.
    axis.set_title(panel.title, fontsize=7, loc="left", parse_math=False)
    if panel.shown.ndim == 3:
        axis.imshow(panel.shown)
        return
    drawn = axis.imshow(
        np.ma.masked_invalid(panel.shown),
        cmap=mpl.colormaps[panel.colours].with_extremes(bad="0.5"),
        vmin=panel.ends[0],
        vmax=panel.ends[1],
        interpolation="nearest",
    )
    if panel.bar:
        extend = "both" if panel.ends[0] > 0 else "max"
        figure.colorbar(drawn, ax=axis, label=panel.bar, extend=extend)


def _depth_ends(metres_N: NDArray[Any]) -> tuple[float, float]:
    """Both ends of the colours in metres; never the same, also for a flat or empty map."""
    if metres_N.size == 0:
        return 0.0, 1.0
    low, high = (float(end) for end in np.percentile(metres_N, (1, 99)))
    if high - low < 1e-3 * high:
        return low * 0.95, high * 1.05
    return low, high


def _thickened(map_HW: NDArray[Any]) -> NDArray[Any]:
    """Points of sparse maps 5 x 5 pixels large, so that they are seen."""
    if np.isfinite(map_HW).mean() > _SPARSE:
        return map_HW
    thick_HW = map_HW.copy()
    for axis in (0, 1):
        for step in (-1, 1, -1, 1):
            moved_HW = np.roll(thick_HW, step, axis)
            thick_HW = np.where(np.isfinite(thick_HW), thick_HW, moved_HW)
    return thick_HW

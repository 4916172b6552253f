"""Depth in colours: image grids with colour bars, drawn once for predict, eval and training.

Axes: H W pixels of a picture or a map, C its three colours. Depths in metres.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import DepthFileError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 100
_BAR_INCHES = 1.4
_TITLE_INCHES = 0.45
_WORST_ERROR = 0.5
_SPARSE = 0.2

DEPTH_BAR, INVERSE_BAR = "depth [m]", "inverse depth, relative"
"""What a colour bar measures; relative depth has no scale of metres."""


class Ends(NamedTuple):
    """The values at both ends of the colours."""

    low: float
    high: float


def ends_of(map_HW: NDArray[np.floating]) -> Ends:
    """The 1st and the 99th percentile of a map's valid values, apart where these are all one."""
    valid = map_HW[np.isfinite(map_HW) & (map_HW > 0)]
    if not valid.size:
        return Ends(0.0, 1.0)
    low, high = np.percentile(valid, (1, 99))
    if high - low < 1e-3 * high:
        low, high = low * 0.95, high * 1.05
    return Ends(float(low), float(high))


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


def depth_panel(
    depth_HW: NDArray[Any], title: str = "", bar: str = DEPTH_BAR, *, inverse: bool = False
) -> Panel:
    """A depth map: near is red, far is blue, no depth (NaN, infinite, not above 0) is grey.

    The colours run from the map's 1st to its 99th percentile. ``inverse``: larger is nearer.
    """
    valid_HW = np.isfinite(depth_HW) & (depth_HW > 0)
    colours = "turbo" if inverse else "turbo_r"
    return Panel(np.where(valid_HW, depth_HW, np.nan), title, ends_of(depth_HW), bar, colours)


def comparison(
    image_HWC: NDArray[np.uint8],
    depth_HW: NDArray[Any],
    pred_HW: NDArray[Any],
    title: str = "",
    *,
    truth: str = "truth",
    inverse: bool = False,
) -> list[Panel]:
    """A row of an image grid: picture, truth, prediction and error.

    Truth and prediction share the truth's colours; the error is |prediction - truth| / truth, up to
    0.5. Points of sparse truth are drawn 5 x 5 pixels large. ``title`` stands above the picture,
    ``truth`` above the truth. ``inverse``: both are relative inverse depth.
    """
    panel = depth_panel(depth_HW, truth, bar="", inverse=inverse)
    error_HW = np.abs(pred_HW - panel.shown) / panel.shown
    bar = INVERSE_BAR if inverse else DEPTH_BAR
    return [
        Panel(image_HWC, title),
        replace(panel, shown=_thickened(panel.shown)),
        Panel(pred_HW, "prediction", panel.ends, bar, panel.colours),
        Panel(_thickened(error_HW), "error", (0.0, _WORST_ERROR), f"of {truth}", "magma"),
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
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DepthFileError(
            'colour pictures need matplotlib: pip install "clipdepth-plugin[cli]"'
        ) from error
    height, width = rows[0][0].shown.shape[:2]
    ratio = min(max(height / width, 0.25), 4.0)
    panel_width, panel_height = panel_inches / max(1.0, ratio), panel_inches * min(1.0, ratio)
    size = (
        panel_width * len(rows[0]) + _BAR_INCHES,
        (max(panel_height, 1.0) + _TITLE_INCHES) * len(rows),
    )
    figure = Figure(size, dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, panels in zip(grid, rows, strict=True):
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata=note)
    return content.getvalue()


def _draw(axis: Axes, panel: Panel) -> None:
    axis.set_axis_off()
    # A name may have dollar signs in it, which are no formula, and bytes that are no text.
    axis.set_title(printable(panel.title), fontsize=7, loc="left", parse_math=False)
    low, high = panel.ends
    sharp = "nearest" if panel.shown.ndim == 2 else None
    drawn = axis.imshow(panel.shown, panel.colours, vmin=low, vmax=high, interpolation=sharp)
    drawn.cmap = drawn.cmap.with_extremes(bad="0.5")
    if panel.bar:
        extend = "both" if low > 0 else "max"
        axis.figure.colorbar(drawn, ax=axis, label=panel.bar, extend=extend)


def _thickened(map_HW: NDArray[Any]) -> NDArray[Any]:
    """Points of sparse maps 5 x 5 pixels large, so that they are seen."""
    valid_HW = np.isfinite(map_HW)
    if valid_HW.mean() > _SPARSE:
        return map_HW
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(np.where(valid_HW, map_HW, -np.inf), 2, constant_values=-np.inf), (5, 5)
    )
    largest_HW = windows.max(axis=(2, 3))
    return np.where(valid_HW, map_HW, np.where(np.isfinite(largest_HW), largest_HW, np.nan))

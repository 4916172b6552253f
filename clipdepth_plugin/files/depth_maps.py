"""Depth maps on disk: 16-bit PNG in millimetres, .npy in metres, colour pictures to look at.

Relative depth is written as inverse depth, to files of other names. Every file appears whole or
not at all (``atomic.py``).
Axes: H W pixels of the map.
"""

from __future__ import annotations

import logging
import math
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import DepthFileError, quoted
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.colours import DEPTH_BAR, INVERSE_BAR, Panel, depth_panel, image_grid

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

DepthMap: TypeAlias = "Tensor | NDArray[Any]"

MAX_MILLIMETRES = 65535
_STRIP_PIXELS, _DRAWN_PIXELS = 1 << 22, 1 << 24

NOTE_KEY = "Description"
"""The PNG text chunk that says what a file of ours shows, and by which it is known as ours."""

NPY_NOTE = b"\nwritten by clipdepth predict\n"
"""What a NumPy file of ours ends with, and by which it is known as ours."""

DEPTH_NOTE = "depth along the optical axis in millimetres; 0 is no depth"
CONFIDENCE_NOTE = "probability of depth within a factor of 1.25; 255 is 1"
INVERSE_NOTE = (
    "relative depth, no metres: inverse depth, larger is nearer, with a scale and a shift of this "
    "picture's own; 0 is no depth"
)
RELATIVE_COLOUR_NOTE = "relative depth in colours, near red and far blue"
UNDISTORTED_NOTE = "the picture without the distortion of its lens"
COLOUR_NOTE = "depth along the optical axis in colours, near red and far blue"


def write_depth_png(path: StrPath, depth_HW: DepthMap) -> None:
    """Writes or replaces a 16-bit grey PNG in millimetres, of a map (H, W) in metres.

    NaN, infinite and non-positive values become 0, which means "no depth"; positive values below
    a millimetre become 1. The file ends at 65.535 m: what lies beyond is stored as 65535 and
    reported in one logged warning.

    Raises:
        DepthFileError: Not an (H, W) map, or the file can't be written.
    """
    metres_HW = _as_map(depth_HW, path)
    beyond = sum(map(_count_beyond, _strips(metres_HW)))
    if beyond:
        logger.warning(
            "%s: %d of %d pixels lie beyond 65.535 m, the most that a 16-bit PNG in millimetres "
            "holds, and are stored as that; --npy (write_npy) keeps the metres",
            *(path, beyond, metres_HW.size),
        )
    _write_png(path, to_millimetres(metres_HW), DEPTH_NOTE)


def to_millimetres(metres_HW: NDArray[Any]) -> NDArray[np.uint16]:
    """What ``write_depth_png`` stores of a map in metres."""
    return np.concatenate([_strip_in_millimetres(strip_HW) for strip_HW in _strips(metres_HW)])


def _strip_in_millimetres(metres_HW: NDArray[Any]) -> NDArray[np.uint16]:
    metres_HW = metres_HW.astype(np.float64)
    valid_HW = np.isfinite(metres_HW) & (metres_HW > 0)
    millimetres_HW = np.rint(np.where(valid_HW, metres_HW, 0.0) * 1000.0)
    return np.where(valid_HW, millimetres_HW.clip(1, MAX_MILLIMETRES), 0).astype(np.uint16)


def _count_beyond(metres_HW: NDArray[Any]) -> int:
    metres_HW = metres_HW.astype(np.float64)
    farthest = (MAX_MILLIMETRES + 0.5) / 1000
    return int(np.count_nonzero(np.isfinite(metres_HW) & (metres_HW > farthest)))


def _strips(map_HW: NDArray[Any]) -> list[NDArray[Any]]:
    """Views of some rows each, so that float64 copies of a large map are small."""
    rows = max(1, _STRIP_PIXELS // map_HW.shape[1])
    return [map_HW[start : start + rows] for start in range(0, map_HW.shape[0], rows)]


def write_inverse_png(path: StrPath, inverse_HW: DepthMap) -> None:
    """Writes or replaces a 16-bit grey PNG of relative inverse depth (H, W).

    The map's least and largest finite value become 1 and 65535; NaN and infinity 0, "no depth".

    Raises:
        DepthFileError: Not an (H, W) map, or the file can't be written.
    """
    inverse_HW = _as_map(inverse_HW, path)
    known_HW = np.isfinite(inverse_HW)
    low, high = (
        (inverse_HW[known_HW].min(), inverse_HW[known_HW].max()) if known_HW.any() else (0, 0)
    )
    span = float(high) - float(low) or 1.0
    share_HW = (np.where(known_HW, inverse_HW, low).astype(np.float64) - float(low)) / span
    stored_HW = np.where(known_HW, np.rint(1 + share_HW * 65534), 0).astype(np.uint16)
    _write_png(path, stored_HW, INVERSE_NOTE)


def write_confidence_png(path: StrPath, confidence_HW: DepthMap) -> None:
    """Writes or replaces an 8-bit grey PNG of probabilities (H, W): 255 is 1, 0 is 0 or NaN.

    Raises:
        DepthFileError: Not an (H, W) map, or the file can't be written.
    """
    _write_png(path, to_grey(_as_map(confidence_HW, path)), CONFIDENCE_NOTE)


def to_grey(confidence_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """What ``write_confidence_png`` stores of a map of probabilities."""
    strips = (
        np.nan_to_num(one.astype(np.float64)).clip(0.0, 1.0) for one in _strips(confidence_HW)
    )
    return np.concatenate([np.rint(sure_HW * 255.0).astype(np.uint8) for sure_HW in strips])


def _write_png(path: StrPath, grey_HW: NDArray[Any], note: str) -> None:
    write_picture_png(path, Image.fromarray(grey_HW), note)


def write_picture_png(path: StrPath, image: Image.Image, note: str) -> None:
    """Writes or replaces a PNG that says what it shows.

    Raises:
        DepthFileError: It can't be written.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text(NOTE_KEY, note)
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=info))


def write_npy(path: StrPath, depth_HW: DepthMap) -> None:
    """Writes or replaces a NumPy file: a map (H, W) as float32, every value as it is.

    Nothing is added to the file's name. Behind the array, where ``numpy.load`` stops, a line
    ``NPY_NOTE`` says who wrote it.

    Raises:
        DepthFileError: Not an (H, W) map, or the file can't be written.
    """
    float_HW = _as_map(depth_HW, path).astype(np.float32)

    def write(file: IO[bytes]) -> None:
        np.save(file, float_HW, allow_pickle=False)
        file.write(NPY_NOTE)

    write_atomically(path, write)


def write_colour(
    path: StrPath,
    depth_HW: DepthMap,
    *,
    image: Image.Image | NDArray[np.uint8] | None = None,
    inverse: bool = False,
) -> None:
    """Writes or replaces a PNG to look at: a map (H, W) in colours, with a bar that reads metres.

    The colours are those of ``depth_panel``; the picture ``image`` is shown at their left. Of more
    than 16 million pixels every second, third, ... is drawn: matplotlib needs 100 bytes for each.
    ``inverse``: the map is relative inverse depth, and its bar has no metres.

    Raises:
        DepthFileError: Not an (H, W) map, matplotlib is missing, or the file can't be written.
    """
    map_HW = _as_map(depth_HW, path)
    step = max(1, math.ceil(math.sqrt(map_HW.size / _DRAWN_PIXELS)))
    panels = [] if image is None else [Panel(np.asarray(image)[::step, ::step])]
    bar, note = (INVERSE_BAR, RELATIVE_COLOUR_NOTE) if inverse else (DEPTH_BAR, COLOUR_NOTE)
    shown_HW = map_HW[::step, ::step].astype(np.float64)
    panels.append(depth_panel(shown_HW, bar=bar, inverse=inverse))
    content = image_grid([panels], panel_inches=8, note={NOTE_KEY: note})
    write_atomically(path, content)


def one_map(depth: DepthMap, what: str) -> NDArray[Any]:
    """A map (H, W), given so or with axes of length 1 before; ``what`` begins the message.

    Raises:
        DepthFileError: It is something else.
    """
    if len(getattr(depth, "shape", ())) in (3, 4) and set(depth.shape[:-2]) == {1}:
        depth = depth.reshape(depth.shape[-2:])
    return _as_map(depth, what)


def _as_map(depth: DepthMap, where: StrPath) -> NDArray[Any]:
    map_HW = depth
    if not isinstance(map_HW, np.ndarray) and hasattr(map_HW, "detach"):
        map_HW = map_HW.detach().float().cpu().numpy()
    if not isinstance(map_HW, np.ndarray) or map_HW.dtype.kind not in "fiu":
        raise DepthFileError(
            f"{where}: got {quoted(getattr(map_HW, 'dtype', map_HW))}, expected a depth map (H, W)"
        )
    if map_HW.ndim != 2 or map_HW.size == 0:
        raise DepthFileError(
            f"{where}: a depth map has shape (H, W), got {tuple(map_HW.shape)}; "
            "write the maps of a batch one by one, as depth[i, 0]"
        )
    return map_HW

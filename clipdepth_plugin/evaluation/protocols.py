"""Which pixels of which pictures are measured, and how predictions are made.

Boxes are (top, bottom, left, right) in pixels, ends excluded. Axes: H W pixels. Depths in metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from clipdepth_plugin.arguments import parse_metres
from clipdepth_plugin.errors import DataError, HostError, quoted

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[int, int, int, int]
Crop = Literal["none", "nyu", "garg", "eigen"]
Alignment = Literal["none", "median", "lsq", "inverse"]
"""How a prediction is scaled to the truth of its picture; see ``metrics.ALIGNMENTS``."""
ProtocolName = Literal["nyu", "kitti-garg", "kitti-eigen", "rgbd"]

NYU_SIZE = (480, 640)
NYU_BOX: Box = (45, 471, 41, 601)
KB_SIZE = (352, 1216)
SMALLEST_DEPTH = 1e-3
"""Metres; the benchmarks' lower end."""

# (top, bottom, left, right) as shares of height and width.
_KITTI_SHARES = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a benchmark measures.

    Attributes:
        name: Its name on the command line.
        low: Depth counts where low < truth < high, and predictions are clipped to both.
        high: See ``low``; None for no bound.
        crop: The box inside which depth counts.
        flip: Predict the mean of the plain picture and the mirrored one.
        size: (H, W) that the pictures must have, or None.
        kb_crop: Show the tower only the KITTI benchmark's 352 x 1216 (bottom centre); depth then
            counts only inside it.
    """

    name: ProtocolName
    low: float
    high: float | None
    crop: Crop = "none"
    flip: bool = False
    size: tuple[int, int] | None = None
    kb_crop: bool = False

    def box(self, height: int, width: int) -> Box:
        """The box inside which depth counts."""
        if self.crop == "none":
            return 0, height, 0, width
        if self.crop == "nyu":
            return NYU_BOX
        top, bottom, left, right = _KITTI_SHARES[self.crop]
        return int(top * height), int(bottom * height), int(left * width), int(right * width)

    def seen(self, height: int, width: int) -> Box:
        """The box that the tower is shown.

        Raises:
            DataError: The picture is smaller than the benchmark's crop.
        """
        if not self.kb_crop:
            return 0, height, 0, width
        rows, columns = KB_SIZE
        if height < rows or width < columns:
            raise DataError(
                f"a picture of {height} x {width} has no kb-crop of {rows} x {columns}: leave the "
                "option out, or open the data set without a crop of its own"
            )
        left = (width - columns) // 2
        return height - rows, height, left, left + columns

    def valid(self, depth_HW: Tensor, name: str = "") -> Tensor:
        """(H, W) bool, the pixels that count; ``name`` is the picture's, for errors.

        Raises:
            DataError: The picture does not have the protocol's size.
        """
        import torch  # the command line reads the protocols' names without it

        height, width = depth_HW.shape
        if self.size is not None and (height, width) != self.size:
            raise DataError(
                f"{name}: {height} x {width} pixels, the protocol {self.name!r} measures at "
                f"{self.size[0]} x {self.size[1]}: open the data set at its own size, or use the "
                "protocol 'rgbd'"
            )
        inside_HW = torch.zeros_like(depth_HW, dtype=torch.bool)
        boxes = (self.box(height, width), self.seen(height, width))
        top, left = (max(box[i] for box in boxes) for i in (0, 2))
        bottom, right = (min(box[i] for box in boxes) for i in (1, 3))
        inside_HW[top:bottom, left:right] = True
        high = math.inf if self.high is None else self.high
        return inside_HW & (depth_HW > self.low) & (depth_HW < high)


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "nyu": Protocol("nyu", SMALLEST_DEPTH, 10.0, crop="nyu", flip=True, size=NYU_SIZE),
    "kitti-garg": Protocol("kitti-garg", SMALLEST_DEPTH, 80.0, crop="garg", flip=True),
    "kitti-eigen": Protocol("kitti-eigen", SMALLEST_DEPTH, 80.0, crop="eigen", flip=True),
    "rgbd": Protocol("rgbd", SMALLEST_DEPTH, None),
}


def get_protocol(
    name: ProtocolName,
    *,
    depth_range: tuple[float, float | None] | None = None,
    flip: bool | None = None,
    kb_crop: bool = False,
) -> Protocol:
    """A protocol by name, with changes where it allows them.

    Args:
        name: A key of ``PROTOCOLS``.
        depth_range: (low, high or None) in metres, for ``rgbd`` only.
        flip: See ``Protocol``; None as the protocol does.
        kb_crop: See ``Protocol``; for KITTI only.

    Raises:
        DataError: An unknown name, or a change that the protocol does not allow.
    """
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise DataError(f"protocol {name!r}: unknown; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if depth_range is not None:
        if name != "rgbd":
            raise DataError(f"protocol {name!r} has a depth range of its own: leave it out")
        low, high = _checked_range(depth_range)
        protocol = replace(protocol, low=low, high=high)
    if kb_crop and protocol.crop not in _KITTI_SHARES:
        raise DataError(f"protocol {name!r}: only the KITTI protocols take the kb-crop")
    return replace(protocol, flip=protocol.flip if flip is None else flip, kb_crop=kb_crop)


def _checked_range(given: object) -> tuple[float, float | None]:
    wrong = f"depth range {quoted(given)}: needs (low, high) with 0 < low < high in metres"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(wrong)
    try:
        low = parse_metres(given[0], "low")
        high = None if given[1] is None else parse_metres(given[1], "high")
    except HostError as error:
        raise DataError(wrong) from error
    if high is not None and not low < high:
        raise DataError(wrong)
    return low, high

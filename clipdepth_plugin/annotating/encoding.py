"""What LeRobot's depth encoder can hold: its range, its steps, and the value that says "unknown".

Its videos hold 12-bit codes, logarithmic from 0.01 m on. There is no code for "unknown": NaN would
become code 0, which is read as 10 mm. So code 0 is kept for that, and for nothing else.

Axes: H W a picture's own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.labelling.lerobot import lerobot_module

Map = NDArray[np.float32]


class Frame(NamedTuple):
    """A depth map as it is written.

    Attributes:
        depth_HW1: float32 metres; the encoder's lowest value where depth is not known.
        unknown: Pixels that are not known, among them those out of range.
        out_of_range: Pixels whose depth is known and beyond the range.
    """

    depth_HW1: Map
    unknown: int
    out_of_range: int


@dataclass(frozen=True)
class DepthRange:
    """The metres that are stored.

    Attributes:
        unknown: What stands for "not known": the metres of code 0.
        nearest: The metres of code 1.
        farthest: What is farther is not known.
    """

    unknown: float
    nearest: float
    farthest: float

    @property
    def known_from(self) -> float:
        """What is read below is not known: LeRobot's own arithmetic gives code 0 to 1e-6 m."""
        return round((self.unknown + self.nearest) / 2, 6)

    def stored(self, depth_HW: Map) -> Frame:
        """A map without NaN, infinities and what is out of range."""
        finite_HW = np.isfinite(depth_HW)
        with np.errstate(invalid="ignore"):
            kept_HW = finite_HW & (depth_HW >= self.nearest) & (depth_HW <= self.farthest)
        filled_HW = np.where(kept_HW, depth_HW, np.float32(self.unknown)).astype(np.float32)
        unknown = kept_HW.size - int(kept_HW.sum())
        return Frame(filled_HW[..., None], unknown, int(finite_HW.sum()) - int(kept_HW.sum()))


JOINABLE = "bframes=0:open-gop=0:weightp=0:log-level=error"
"""For x265. Of videos with B-frames or open groups that LeRobot joins, frames at the seams are lost
to its decoder, or muxing fails, as the number of frames has it. With weighted prediction the same
frames give other bytes in each run."""


def depth_encoder(max_depth: float | None) -> Any:
    """LeRobot's ``DepthEncoderConfig``: its own but for the end of its range and ``JOINABLE``."""
    config = lerobot_module("configs", "a depth stream").DepthEncoderConfig
    given: dict[str, Any] = {} if max_depth is None else {"depth_max": max_depth}
    options = dict(config().extra_options)
    if "x265-params" in options:
        given["extra_options"] = {**options, "x265-params": f"{options['x265-params']}:{JOINABLE}"}
    return config(**given)


def levels(encoder: Any) -> NDArray[np.float64]:
    """The metres of each code, as LeRobot reads them."""
    utils = lerobot_module("datasets.depth_utils", "a depth stream")
    qmax = lerobot_module("configs.video", "a depth stream").DEPTH_QMAX
    metres_11N = utils.dequantize_depth(
        np.arange(qmax + 1, dtype=np.uint16)[None],
        **{name: getattr(encoder, name) for name in ("depth_min", "depth_max", "shift", "use_log")},
        output_unit="m",
        output_tensor=False,
    )
    return np.asarray(metres_11N, np.float64).reshape(-1)


def depth_range(encoder: Any, farthest: float) -> DepthRange:
    """What is stored of a source that says no more than "far" from ``farthest`` metres on."""
    metres = levels(encoder)
    return DepthRange(float(metres[0]), float(metres[1]), min(farthest, float(metres[-1])))

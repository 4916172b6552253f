"""A head beside its host, for one picture at a time: metres, the lens they are for, what they cost.

Axes: C metres and confidence, H W the picture's own size.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin.adapters.pixels import shown
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.maps.cameras import camera_scales
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.plugin.reading import DepthPass

_USUAL_DEGREES = 64.0
"""Of a phone's or a webcam's lens, along the longer side."""


class Cost(NamedTuple):
    """Seconds of one picture."""

    tower: float
    depth: float


class Depth(NamedTuple):
    """The depth of a picture.

    Attributes:
        metres_HW: float32; NaN is no depth.
        confidence_HW: Where the head predicts it.
        cost: What it took.
    """

    metres_HW: NDArray[np.float32]
    confidence_HW: NDArray[np.float32] | None
    cost: Cost


def field_of_view(focal_px: float, image: Image.Image) -> float:
    """Degrees along the longer side of a picture."""
    return 2 * math.degrees(math.atan(max(image.size) / 2 / focal_px))


def focal_length(degrees: float, image: Image.Image) -> float:
    """In pixels of a picture, from the field of view along its longer side."""
    return max(image.size) / 2 / math.tan(math.radians(degrees / 2))


def camera_of(focal_px: float, image: Image.Image) -> Intrinsics:
    """(fx, fy, cx, cy) of a lens whose centre is the picture's."""
    return centred(focal_px, (image.height, image.width))


class DepthModel:
    """What the page shows depth with; its threads may share it.

    Attributes:
        name: Of host and head, for the page.
        canonical: Whether the head's metres follow from the lens.
    """

    def __init__(
        self,
        name: str,
        host: nn.Module,
        head: DepthHead,
        preprocessing: Preprocessing | None,
        *,
        tower: str | None = None,
        other_tower: bool = False,
    ) -> None:
        """Checks that the head fits.

        Raises:
            HeadMismatchError: It does not, or gives relative depth.
        """
        if not head.config.metric:
            raise HeadMismatchError(
                "this head gives relative depth (config.metric is False), and the page shows "
                "metres: clipdepth predict writes its depth as pictures"
            )
        self.name, self.canonical = name, head.config.canonical_focal is not None
        self._config = head.config
        self._plugin = _TimedPlugin(
            host, head, processor=preprocessing, tower=tower, other_tower=other_tower
        )
        self._depth_of = PictureDepth(self._plugin)
        self._alone = threading.Lock()

    def __call__(self, image: Image.Image, focal_px: float | None) -> Depth:
        """The depth of an RGB picture; ``focal_px`` None: the head's own lens is assumed.

        Raises:
            NoDepthError: A picture of one colour.
            HostError: No lens has such a focal length.
        """
        known = focal_px if self.canonical else None
        with self._alone:
            map_CHW = self._depth_of([image], focal_px=known)[0].cpu()
            cost = Cost(self._plugin.tower_seconds, time.perf_counter() - self._plugin.tower_end)
        metres_HW, *confidence = map_CHW.numpy()
        if np.isnan(metres_HW).all():
            raise NoDepthError("no depth: the picture is of one colour")
        return Depth(metres_HW, confidence[0] if confidence else None, cost)

    def own_focal(self, image: Image.Image) -> float:
        """The focal length, in a picture's pixels, that the head's metres are for.

        Where they are for none, that of a usual lens.
        """
        usual = focal_length(_USUAL_DEGREES, image)
        if not self.canonical:
            return usual
        placed = shown([image], self._depth_of.framing)[1]
        scale = camera_scales(self._config, placed, None, usual, LensCheck())[0]
        assert scale is not None
        return usual / scale


class _TimedPlugin(DepthPlugin):
    """Keeps how long the tower ran, and when it ended."""

    tower_seconds = tower_end = 0.0

    def views_pass(self, views: Sequence[Tensor]) -> DepthPass:
        start = time.perf_counter()
        seen = super().views_pass(views)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.tower_end = time.perf_counter()
        self.tower_seconds = self.tower_end - start
        return seen

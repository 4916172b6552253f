"""What is known of the cameras, as factors of a canonical camera's metres.

Metric3D (arXiv 2307.10984, section 3.2): depth grows with the focal length of the lens that took
the picture, so a head learns one canonical lens and its metres are scaled for another.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence

from torch import nn

from clipdepth_plugin.arguments import Intrinsics, parse_focal, parse_intrinsics
from clipdepth_plugin.errors import HeadMismatchError, HostError
from clipdepth_plugin.maps.geometry import ImageViews

logger = logging.getLogger(__name__)

_TOLD = weakref.WeakSet[nn.Module]()
"""Heads whose assumed focal length was said."""


def say_assumed_focal(head: nn.Module, canonical: float | None) -> None:
    """Which focal length is assumed where no camera was given; once for each head."""
    if canonical is not None and head not in _TOLD:
        _TOLD.add(head)
        logger.warning(
            "no camera given: focal length taken as %g px of the view; predict(focal_px=...) "
            "or intrinsics=... give the metres of another camera",
            canonical,
        )


def camera_scales(
    canonical: float | None,
    images: int | Sequence[ImageViews],
    intrinsics: Intrinsics | Sequence[Intrinsics] | None,
    focal_px: float | Sequence[float | None] | None,
) -> list[float]:
    """Factor of each view's metres by its camera: true over canonical focal length.

    Args:
        canonical: The head's; None for one that knows no cameras.
        images: The number of views, each with a camera in its own pixels; or the images that were
            cut into views, whose cameras go along into each.
        intrinsics: (fx, fy, cx, cy), one for all or one for each.
        focal_px: The focal length alone; None in a list for an unknown one.

    Raises:
        HostError: Both are given, or not as many as there are images, or no cameras.
        HeadMismatchError: The head knows no cameras.
    """
    if intrinsics is not None and focal_px is not None:
        raise HostError("intrinsics and focal_px both say the focal length: give one")
    if canonical is None:
        raise HeadMismatchError(
            "this head was trained without a canonical camera (config.canonical_focal is "
            "None): the focal length cannot change its metres"
        )
    count = images if isinstance(images, int) else len(images)
    cameras: Sequence[Intrinsics | None]
    if intrinsics is not None:
        cameras = parse_intrinsics(intrinsics, count)
    else:
        focals = parse_focal(focal_px, count)
        cameras = [None if f is None else (f, f, 0.0, 0.0) for f in focals]
    unknown = [index for index, camera in enumerate(cameras) if camera is None]
    if unknown:
        logger.info("images %s: focal length taken as %g px of the view", unknown, canonical)
    if not isinstance(images, int):
        cameras = [
            camera and view.intrinsics(camera)
            for image, camera in zip(images, cameras, strict=True)
            for view in image.views
        ]
    return [1.0 if c is None else math.sqrt(c[0] * c[1]) / canonical for c in cameras]

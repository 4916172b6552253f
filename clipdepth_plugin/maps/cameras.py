"""What is known of the cameras, as factors of a canonical camera's metres.

Metric3D (arXiv 2307.10984, section 3.2): depth grows with the focal length of the lens that took
the picture, so a head learns one canonical lens and its metres are scaled for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from clipdepth_plugin.arguments import Intrinsics, Size, parse_focal, parse_intrinsics
from clipdepth_plugin.errors import HeadMismatchError, HostError
from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry, traced

Cameras = Intrinsics | Sequence[Intrinsics | None]
"""(fx, fy, cx, cy), one for all images or one (None: not known) for each."""

Focals = float | Sequence[float | None]
"""A focal length in pixels, one for all images or one (None: not known) for each."""


class Canonical(Protocol):
    """Of a head or its file: the camera that its metres are for; ``HeadConfig`` says more."""

    @property
    def metric(self) -> bool:
        """Whether it gives metres at all."""

    @property
    def canonical_focal(self) -> float | None:
        """The focal length; None: its metres do not follow from the lens."""

    def focal_at(self, size: Size) -> float | None:
        """The focal length in pixels of a tower input of another (H, W)."""


def views_themselves(sizes: Sequence[Size]) -> list[ImageViews]:
    """Views as images of their own, for cameras that are given in pixels of the tower's input."""
    return [ImageViews((ViewGeometry.squashed(size, size),)) for size in sizes]


def camera_scales(
    config: Canonical,
    images: Sequence[ImageViews],
    intrinsics: Cameras | None,
    focal_px: Focals | None,
    check: LensCheck,
) -> list[float | None]:
    """Factor of each view's metres by its camera: true over canonical focal length.

    The one is carried from the image into the view, the other to the view's size
    (``Canonical.focal_at``). Cameras are given in pixels of the images.

    Returns:
        One for each view; None where the camera is not known.

    Raises:
        HostError: Both are given, not as many as images, or what is no camera of such a picture.
        HeadMismatchError: The head was trained without a canonical camera, or gives relative depth.
    """
    _check_one(intrinsics, focal_px)
    if not config.metric:
        raise HeadMismatchError(
            "this head gives relative depth (config.metric is False): no camera turns it into "
            "metres; leave intrinsics and focal_px out"
        )
    if config.canonical_focal is None:
        raise HeadMismatchError(
            "this head was trained without a canonical camera (config.canonical_focal is "
            "None): the focal length cannot change its metres"
        )
    cameras = view_cameras(images, intrinsics, focal_px, check)
    views = [view for image in images for view in image.views]
    return [
        None if camera is None else _scale(config, view, camera)
        for view, camera in zip(views, cameras, strict=True)
    ]


def view_cameras(
    images: Sequence[ImageViews],
    intrinsics: Cameras | None,
    focal_px: Focals | None,
    check: LensCheck,
) -> list[Intrinsics | None]:
    """The camera of each view in its own pixels, from those of the images in theirs.

    Raises:
        HostError: Both are given, not as many as images, or what is no camera of such a picture.
    """
    _check_one(intrinsics, focal_px)
    sizes = [image.views[0].image_size for image in images]
    if intrinsics is not None:
        name, cameras = "intrinsics", parse_intrinsics(intrinsics, len(images))
    else:
        name, focals = "focal_px", parse_focal(focal_px, len(images))
        cameras = [
            None if focal is None else centred(focal, size)
            for focal, size in zip(focals, sizes, strict=True)
        ]
    if not traced():
        for index, (camera, size) in enumerate(zip(cameras, sizes, strict=True)):
            if camera is not None:
                check(camera, size, f"{name}, image {index}" if len(sizes) > 1 else name)
    return [
        None if camera is None else view.intrinsics(camera)
        for image, camera in zip(images, cameras, strict=True)
        for view in image.views
    ]


def _check_one(intrinsics: Cameras | None, focal_px: Focals | None) -> None:
    if intrinsics is not None and focal_px is not None:
        raise HostError("intrinsics and focal_px both say the focal length: give one")


def _scale(config: Canonical, view: ViewGeometry, camera: Intrinsics) -> float:
    fx, fy, _, _ = camera
    canonical = config.focal_at(view.view_size)
    assert canonical is not None
    return math.sqrt(fx * fy) / canonical

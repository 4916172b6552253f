"""Cameras that cannot be, and cameras that are unlikely, for a picture whose size is known.

Most wrong cameras are right ones in another unit: a matrix that is normalised to the picture, a
focal length in millimetres, a matrix of another resolution. Such a lens would see far more or far
less than lenses do, or lie beside its picture. The limits, and what exists near them:

- Field of view: over 130 degrees is unlikely, over 175 impossible; over 130 with a centre within
  the first pixel, too: normalised. The widest rectilinear lenses have 127, and a fisheye's focal
  length is longer for its field: one of 180 degrees counts as 115.
- Under 1 degree is unlikely, under 0.1 impossible. 1200 mm with a doubling converter has 0.9.
- fx and fy apart by more than 1.5 is unlikely, by more than 10 impossible. A picture of 16:9 that
  was squashed to a square has 1.8.
- A centre further from the picture's middle than 0.2 of a side is unlikely: crops of larger
  pictures have it. Where all of the picture is over 85 degrees off the axis it is impossible.

The field of view is that of a pinhole, 2 atan(side / 2f), along the side where it is larger.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from clipdepth_plugin.arguments import Intrinsics, Size
from clipdepth_plugin.errors import HostError

logger = logging.getLogger(__name__)

WIDE = (130.0, 175.0)
NARROW = (1.0, 0.1)
ASPECT = (1.5, 10.0)
OFF_CENTRE = 0.2
OFF_AXIS = 85.0
RESHAPED = 0.01

_UNIT = (
    "cameras are in pixels of this picture, not in millimetres, not normalised, not of another "
    "resolution"
)


NUMBERS = {"radial": 8, "fisheye": 4}
"""Model -> how many numbers of distortion it has."""


class Lens(NamedTuple):
    """A camera whose pictures may be distorted.

    Attributes:
        camera: (fx, fy, cx, cy).
        size: (height, width) of the pictures that it is for; None: of any.
        model: ``radial`` is OpenCV's (Brown and Conrady), ``fisheye`` its fisheye model (Kannala
            and Brandt).
        distortion: Of ``radial`` k1 k2 p1 p2 and k3 ... k6 as far as given, of ``fisheye`` k1 to
            k4; all 0: none.
    """

    camera: Intrinsics
    size: Size | None = None
    model: Literal["radial", "fisheye"] = "radial"
    distortion: tuple[float, ...] = ()

    @property
    def is_distorted(self) -> bool:
        """Whether straight lines are bent: by any fisheye, too, whose numbers are all 0."""
        return self.model == "fisheye" or any(self.distortion)

    def at(self, size: Size, where: str) -> Lens:
        """The lens for a picture of another size, that was resized; ``where`` names it.

        Raises:
            HostError: The picture has another shape: it was cropped or turned.
        """
        if self.size is None or self.size == size:
            return self._replace(size=size)
        scales = size[0] / self.size[0], size[1] / self.size[1]
        if abs(scales[0] / scales[1] - 1) > RESHAPED:
            raise HostError(
                f"{where}: is of {size[0]} x {size[1]} (height, width), and the camera of pictures "
                f"of {self.size[0]} x {self.size[1]}, another shape: it was cropped or turned "
                "since; give the camera of this picture"
            )
        fx, fy, cx, cy = self.camera
        camera = (
            fx * scales[1],
            fy * scales[0],
            (cx + 0.5) * scales[1] - 0.5,
            (cy + 0.5) * scales[0] - 0.5,
        )
        return self._replace(camera=camera, size=size)


class _Doubt(NamedTuple):
    kind: str
    impossible: bool
    text: str


class LensCheck:
    """Refuses impossible cameras; says each kind of doubt once, with the first that raised it."""

    def __init__(self) -> None:
        """Nothing is said yet."""
        self._said: set[str] = set()

    def __call__(self, camera: Intrinsics, size: Size, where: str) -> None:
        """Checks the camera of a picture of ``size``; ``where`` names it.

        Raises:
            HostError: No lens has it.
        """
        for doubt in _doubts(camera, size):
            numbers = ", ".join(f"{x:.6g}" for x in camera)
            text = (
                f"{where}: a camera (fx, fy, cx, cy) = ({numbers}) of a picture of {size[0]} x "
                f"{size[1]} (height, width) {doubt.text}"
            )
            if doubt.impossible:
                raise HostError(f"{text}, as no lens does: {_UNIT}")
            if doubt.kind not in self._said:
                self._said.add(doubt.kind)
                logger.warning("%s, as few lenses do: check it, %s", text, _UNIT)


def centred(focal: float, size: Size) -> Intrinsics:
    """The camera of which only the focal length is known: its centre is the picture's."""
    return focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2


def _doubts(camera: Intrinsics, size: Size) -> Iterator[_Doubt]:
    fx, fy, cx, cy = camera
    height, width = size
    view = 2 * max(_degrees(width / 2 / fx), _degrees(height / 2 / fy))
    if view > WIDE[0]:
        normalised = max(cx, cy) <= 1 < min(size) / 2
        yield _Doubt("wide", view > WIDE[1] or normalised, f"sees {view:.4g} degrees")
    if view < NARROW[0]:
        yield _Doubt("narrow", view < NARROW[1], f"sees {view:.2g} degrees")
    aspect = max(fx / fy, fy / fx)
    if aspect > ASPECT[0]:
        yield _Doubt("aspect", aspect > ASPECT[1], f"has fx and fy {aspect:.3g} times each other")
    aside = abs(cx - (width - 1) / 2) / width, abs(cy - (height - 1) / 2) / height
    if max(aside) > OFF_CENTRE:
        beyond = [max(part - 0.5, 0.0) for part in aside]  # in sides of the picture
        slope = math.hypot(beyond[0] * width / fx, beyond[1] * height / fy)
        place = "outside the picture" if max(aside) > 0.5 else "far from the picture's middle"
        yield _Doubt("centre", _degrees(slope) > OFF_AXIS, f"has its centre {place}")


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))

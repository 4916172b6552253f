"""A picture's bytes, decoded, with what its EXIF says of the lens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.files.pictures import opened_image, upright_rgb
from clipdepth_plugin.labelling.pictures.kinds import JPEG, PNG, Content

FILE_BYTES = 1 << 28
"""Of a picture's file."""

_KEPT = {"JPEG": JPEG, "MPO": JPEG, "PNG": PNG}
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""EXIF's FocalPlaneResolutionUnit -> millimetres."""
_FULL_FRAME = math.hypot(36.0, 24.0)
_ASPECT = 0.02
_APART = 1.1


def decoded(encoded: bytes, what: str, camera: Intrinsics | None = None) -> Content:
    """Decodes a picture's file; ``what`` names it in errors.

    Raises:
        ImageError: It can't be read.
    """
    with opened_image(encoded, what) as image:
        return content_of(image, what, encoded, camera)


def content_of(
    image: Image.Image, what: str, encoded: bytes | None = None, camera: Intrinsics | None = None
) -> Content:
    """The content of an opened picture.

    Raises:
        ImageError: Its values have no defined white.
    """
    exif = image.getexif()
    upright = exif.get(ExifTags.Base.Orientation, 1) == 1
    suffix = _KEPT.get(image.format or "")
    focal = exif_focal(exif, image.size)
    pixels_HW3 = np.array(upright_rgb(image, what))
    if encoded is None or suffix is None or not upright:
        return Content(pixels_HW3, None, PNG, camera, focal)
    return Content(pixels_HW3, encoded, suffix, camera, focal)


def exif_focal(exif: Image.Exif, size: tuple[int, int]) -> float | None:
    """The focal length in pixels of a stored picture of ``size`` (width, height), as EXIF has it.

    From the resolution of the focal plane and from the equivalent for 35 mm film, which is that of
    the diagonal and a whole number. None where neither is there, where they are more than 10%
    apart, and where the picture has another shape than the camera took: it was cropped since.
    """
    tags = exif.get_ifd(ExifTags.IFD.Exif)
    width, height = size
    taken_width = _number(tags.get(ExifTags.Base.ExifImageWidth)) or width
    taken_height = _number(tags.get(ExifTags.Base.ExifImageHeight)) or height
    shapes = (taken_width / taken_height, taken_height / taken_width)  # some swap them
    if all(abs(width / height / shape - 1) > _ASPECT for shape in shapes):
        return None
    longer, taken_longer = max(size), max(taken_width, taken_height)
    found = []
    focal_mm = _number(tags.get(ExifTags.Base.FocalLength))
    resolution = _number(tags.get(ExifTags.Base.FocalPlaneXResolution))
    unit_mm = _UNIT_MM.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    zoomed = (_number(tags.get(ExifTags.Base.DigitalZoomRatio)) or 1.0) != 1.0
    if focal_mm and resolution and unit_mm and not zoomed:
        found.append(focal_mm * resolution / unit_mm * longer / taken_longer)
    on_film = _number(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if on_film:
        found.append(on_film / _FULL_FRAME * math.hypot(*size))
    if not found or max(found) > _APART * min(found):
        return None
    return found[0]


def _number(value: Any) -> float | None:
    """A positive, finite number; EXIF has fractions with a denominator of 0, too."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None

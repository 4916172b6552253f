"""The focal length that a picture's EXIF says."""

from __future__ import annotations

import math
from typing import Any

from PIL import ExifTags, Image

_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""EXIF's FocalPlaneResolutionUnit -> millimetres."""
_FULL_FRAME = math.hypot(36.0, 24.0)
_ASPECT = 0.02
_APART = 1.1


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

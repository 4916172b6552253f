"""A picture's bytes, decoded, with what its EXIF says of the lens."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.files.exif import exif_focal
from clipdepth_plugin.files.pictures import opened_image, upright_rgb
from clipdepth_plugin.labelling.pictures.kinds import JPEG, PNG, Content

FILE_BYTES = 1 << 28
"""Of a picture's file."""

_KEPT = {"JPEG": JPEG, "MPO": JPEG, "PNG": PNG}


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
    suffix, focal = kept_suffix(image), exif_focal(image.getexif(), image.size)
    pixels_HW3 = np.array(upright_rgb(image, what))
    if encoded is None or suffix is None:
        return Content(pixels_HW3, None, PNG, camera, focal)
    return Content(pixels_HW3, encoded, suffix, camera, focal)


def kept_suffix(image: Image.Image) -> str | None:
    """The suffix under which an opened picture's file is kept as it is: an upright JPEG or PNG."""
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return _KEPT.get(image.format or "") if upright else None

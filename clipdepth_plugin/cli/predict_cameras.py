"""The camera of each picture of ``clipdepth predict``, and pictures made straight by it.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import Intrinsics, Size
from clipdepth_plugin.errors import DataError, HostError, ImageError, printable
from clipdepth_plugin.files.cameras import read_cameras
from clipdepth_plugin.files.exif import exif_focal
from clipdepth_plugin.files.opening import MAX_PIXELS
from clipdepth_plugin.files.pictures import opened_image
from clipdepth_plugin.lenses import Lens, LensCheck, centred

EXIF = "exif"
"""What --intrinsics takes in place of a file: each picture's own EXIF."""

_PHONE = 0.8
"""Focal length over the longer side of a phone's or webcam's lens: 64 degrees."""


class View(NamedTuple):
    """A picture with its camera.

    Attributes:
        image: RGB; straight where that was asked for.
        camera: (fx, fy, cx, cy) of it; None: not known.
        seen_HW: Where a picture that was made straight shows something; None: everywhere.
    """

    image: Image.Image
    camera: Intrinsics | None = None
    seen_HW: NDArray[np.bool_] | None = None

    @property
    def focal_px(self) -> float | None:
        """The focal length that stands for both of a camera's."""
        return None if self.camera is None else math.sqrt(self.camera[0] * self.camera[1])


class ViewMaker:
    """Finds the camera of a picture and makes it straight, as the options say."""

    def __init__(
        self,
        intrinsics: str | None,
        focal_px: float | None,
        *,
        undistort: bool,
        needed_by: str | None = None,
        straight_for: str | None = None,
    ) -> None:
        """Reads the file of cameras.

        Args:
            intrinsics: A file, or ``exif``.
            focal_px: The focal length of all pictures.
            undistort: Whether pictures are made straight.
            needed_by: An option that can't do without the camera of each picture.
            straight_for: An option that takes straight pictures alone.

        Raises:
            DataError: The file can't be read.
        """
        self._exif = intrinsics == EXIF
        given = intrinsics is not None and not self._exif
        self._file = read_cameras(Path(intrinsics)) if given and intrinsics is not None else None
        self._focal_px, self._undistort = focal_px, undistort
        self._needed_by, self._straight_for = needed_by, straight_for
        self._check = LensCheck()

    def __call__(self, image: Image.Image, path: Path, *, is_file: bool = True) -> View:
        """A picture with its camera.

        Args:
            image: The picture.
            path: Where it comes from.
            is_file: Whether the picture is the file itself, and no frame of it.

        Raises:
            ImageError: Its camera is not known or does not fit it, where one is needed.
        """
        size, where = (image.height, image.width), printable(path)
        try:
            lens = self._lens(path, size, is_file=is_file)
            if lens is None:
                if self._needed_by is not None:
                    raise ImageError(self._unknown(where, size))
                return View(image)
            lens = lens.at(size, where)
            self._check(lens.camera, size, where)
        except (DataError, HostError) as error:
            raise ImageError(str(error)) from error
        if not self._undistort:
            if self._straight_for is not None and lens.is_distorted:
                raise ImageError(
                    f"{where}: its lens is distorted ({lens.model}), and {self._straight_for} "
                    "takes straight pictures: add --undistort"
                )
            return View(image, lens.camera)
        from clipdepth_plugin.maps.undistort import undistorted

        if not lens.is_distorted:
            return View(image, lens.camera)
        straight_HW3, seen_HW = undistorted(np.asarray(image), lens)
        return View(Image.fromarray(straight_HW3), lens.camera, seen_HW)

    def _lens(self, path: Path, size: Size, *, is_file: bool) -> Lens | None:
        if self._focal_px is not None:
            return Lens(centred(self._focal_px, size))
        if self._file is not None:
            return self._file.of(str(path))
        if not self._exif or not is_file:
            return None
        with opened_image(path, max_pixels=MAX_PIXELS) as stored:
            focal = exif_focal(stored.getexif(), stored.size)
        return None if focal is None else Lens(centred(focal, size))

    def _unknown(self, where: str, size: Size) -> str:
        likely = round(_PHONE * max(size))
        tried = (
            "its EXIF does not say its focal length" if self._exif else "its camera is not known"
        )
        return (
            f"{where}: {tried}, which {self._needed_by} needs: give --intrinsics FILE (JSON, "
            "COLMAP's cameras.txt, ROS's CameraInfo), --intrinsics exif, or --focal-px (a phone or "
            f"webcam has about {likely} at this size)"
        )

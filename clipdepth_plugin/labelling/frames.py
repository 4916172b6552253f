"""A labelled frame on disk: its depth, how well it agrees, its picture; each whole or not there.

The depth goes first and comes last, so that a frame that has both depth and picture is whole, and
no depth ever lies beside another frame's picture. Its camera is written into the depth's file, too:
``intrinsics.json`` can be made anew from the frames at any time (``sequences.py``).

Axes: H W pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from clipdepth_plugin.arguments import Intrinsics, Units, parse_camera
from clipdepth_plugin.errors import DepthFileError
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.depth_maps import NOTE_KEY
from clipdepth_plugin.files.documents import parse_json
from clipdepth_plugin.files.opening import opened
from clipdepth_plugin.files.pictures import (
    AGREEMENT_SUFFIX,
    DEPTH_SUFFIX,
    INVERSE_SUFFIX,
    OUR_SUFFIXES,
)
from clipdepth_plugin.labelling.pictures.kinds import JPEG, PNG, Content
from clipdepth_plugin.labelling.validity import Stored

_CAMERA_KEY = "Camera"
_RUN_LENGTHS = 3  # zlib's strategy: of depth, 7 times as fast as the default for 5% more
_JPEG_QUALITY = 95
_NOTES: dict[Units, str] = {
    "metres": "pseudo label: depth along the optical axis, metres * depth_scale; 0 is not known",
    "inverse depth": "pseudo label: inverse depth, scale and shift unknown; 0 is not known",
}
_AGREEMENT_NOTE = "agreement with the mirrored picture's label; 255 exactly, 1 at 10%, 0 left out"


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """The files of frames of one kind.

    Attributes:
        units: Of their depth.
        flip: Whether they have an agreement.
    """

    units: Units
    flip: bool

    @property
    def suffix(self) -> str:
        """Of depth."""
        return DEPTH_SUFFIX if self.units == "metres" else INVERSE_SUFFIX

    def whole(self, names: Iterable[str]) -> set[str]:
        """The frames among the names of a folder's files that are whole."""
        depths: set[str] = set()
        agreements: set[str] = set()
        pictures: set[str] = set()
        for name in names:
            if name.endswith(self.suffix):
                depths.add(name.removesuffix(self.suffix))
            elif name.endswith(AGREEMENT_SUFFIX):
                agreements.add(name.removesuffix(AGREEMENT_SUFFIX))
            elif name.endswith((JPEG, PNG)) and not name.endswith(OUR_SUFFIXES):
                pictures.add(name.rpartition(".")[0])
        return depths & pictures & agreements if self.flip else depths & pictures

    def write(
        self, folder: Path, frame: str, content: Content, stored: Stored, camera: Intrinsics | None
    ) -> None:
        """Writes a frame into a folder that is there, in place of the one of that name.

        Raises:
            DepthFileError: A file can't be written, or one of the old frame not removed.
        """
        depth = folder / f"{frame}{self.suffix}"
        _remove(depth)
        if stored.agreement_HW is not None:
            texts = {NOTE_KEY: _AGREEMENT_NOTE}
            _write_png(folder / f"{frame}{AGREEMENT_SUFFIX}", stored.agreement_HW, texts)
        encoded = content.encoded or _encoded(content)
        write_atomically(folder / f"{frame}{content.suffix}", encoded)
        for suffix in {JPEG, PNG} - {content.suffix}:
            _remove(folder / f"{frame}{suffix}")
        texts = {NOTE_KEY: _NOTES[self.units], _CAMERA_KEY: json.dumps(camera)}
        _write_png(depth, stored.depth_HW, texts)

    def camera(self, folder: Path, frame: str) -> Intrinsics | None:
        """The camera of a frame that is there.

        Raises:
            DepthFileError: Its depth is no file of ours.
        """
        path = folder / f"{frame}{self.suffix}"
        with opened(path, str(path), DepthFileError, wanted="label it anew") as image:
            text = getattr(image, "text", {}).get(_CAMERA_KEY)
        if text is None:
            raise DepthFileError(f"{path}: was not written by clipdepth label; remove the frame")
        camera = parse_json(text, str(path), DepthFileError)
        return None if camera is None else parse_camera(camera, str(path))


def _write_png(path: Path, grey_HW: NDArray[Any], texts: dict[str, str]) -> None:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    image = Image.fromarray(grey_HW)
    image.save(buffer, format="PNG", pnginfo=info, compress_type=_RUN_LENGTHS)
    write_atomically(path, buffer.getbuffer())


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DepthFileError(
            f"{path}: can't be replaced ({error.strerror}); check that its folder may be written to"
        ) from error


def _encoded(content: Content) -> memoryview:
    buffer, image = io.BytesIO(), Image.fromarray(content.image_HW3)
    if content.suffix == JPEG:
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, format="PNG", compress_type=_RUN_LENGTHS)
    return buffer.getbuffer()

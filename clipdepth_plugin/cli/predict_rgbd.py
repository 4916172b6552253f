"""The RGB-D folder of ``clipdepth predict --rgbd``, by the writer of ``clipdepth label``.

Axes: H W a picture's own size.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from clipdepth_plugin.cli.predict_cameras import EXIF, View
from clipdepth_plugin.cli.predict_files import Predicted
from clipdepth_plugin.cli.predict_inputs import Inputs
from clipdepth_plugin.errors import DataError, ImageError, printable
from clipdepth_plugin.files.paths import read_bytes
from clipdepth_plugin.files.pictures import opened_image
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.labelling.names import frame_name, sequence_name
from clipdepth_plugin.labelling.pictures.decoding import FILE_BYTES, kept_suffix
from clipdepth_plugin.labelling.pictures.files import folder_sequence
from clipdepth_plugin.labelling.pictures.kinds import JPEG, PNG, Content
from clipdepth_plugin.labelling.settings import LabelSettings
from clipdepth_plugin.labelling.sink import LabelSink
from clipdepth_plugin.labelling.source import SourceCard

SPLIT = "train"
"""As ``clipdepth label`` calls it by default."""


class PredictSettings(LabelSettings):
    """What the depths depend on beside the head; goes into meta.json."""

    _beside: ClassVar[tuple[str, ...]] = ()

    flip: bool = False
    """Predictions are not compared with those of the mirrored picture."""

    undistort: bool = False
    """Pictures were made straight, and are stored so."""

    stream: bool = False
    """Depth was held steady over frames."""


def rgbd_settings(
    focal_px: float | None, intrinsics: str | None, *, undistort: bool, stream: bool
) -> PredictSettings:
    """The settings of the options of these names.

    Raises:
        DataError: One is out of range.
    """
    given = {
        "focal_px": focal_px,
        "intrinsics_file": None if intrinsics == EXIF else intrinsics,
        "exif": intrinsics == EXIF,
        "undistort": undistort,
        "stream": stream,
    }
    return checked(PredictSettings, given, "options", DataError)


@contextlib.contextmanager
def rgbd_folder(folder: Path, card: SourceCard, settings: PredictSettings) -> Iterator[RgbdFolder]:
    """A folder that is new, or of the same head and settings; ``card``: whose depth it is.

    Raises:
        ClipDepthError: As ``LabelSink``.
    """
    with LabelSink(folder, SPLIT, card, settings) as sink:
        yield RgbdFolder(folder, sink)


class RgbdFolder:
    """Writes what is predicted as frames."""

    def __init__(self, folder: Path, sink: LabelSink) -> None:
        """``sink``: the folder's, open."""
        self.folder, self.written = folder, 0
        self._sink = sink

    def picture(self, path: Path, one: Predicted) -> None:
        """Writes a picture that was read from a file.

        Raises:
            DepthFileError: It can't be written.
        """
        name = f"{_sequence(path)}/{frame_name(path.stem)}"
        self._write(name, _content(path, one.view), one)

    def frame(self, video: Path, index: int, one: Predicted) -> None:
        """Writes a frame of a video.

        Raises:
            DepthFileError: It can't be written.
        """
        name = f"{sequence_name(video.name, index=index)}/{index:06d}"
        suffix = JPEG if one.view.seen_HW is None else PNG
        self._write(name, Content(np.asarray(one.view.image), None, suffix), one)

    def _write(self, name: str, content: Content, one: Predicted) -> None:
        self._sink.write(name, content, one.view.camera, one.maps.map_HW)
        self.written += 1


def check_sequences(inputs: Inputs) -> None:
    """Refuses inputs of several folders that would be one sequence.

    Raises:
        ImageError: There are such.
    """
    places: dict[str, Path] = {}
    given = [(_sequence(path), path.resolve().parent) for path in inputs.images]
    given += [(sequence_name(path.name), path.resolve()) for path in inputs.videos]
    for name, place in given:
        other = places.setdefault(name, place)
        if other != place:
            raise ImageError(
                f"{printable(other)}, {printable(place)}: would both be the sequence {name} of "
                "--rgbd; write them to folders of their own, one command each"
            )


def _sequence(path: Path) -> str:
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    return folder_sequence(folder, folder)


def _content(path: Path, view: View) -> Content:
    """The picture as it is stored: its own file where that is an upright JPEG or PNG."""
    image_HW3 = np.asarray(view.image)
    if view.seen_HW is None:
        with opened_image(path, max_pixels=sys.maxsize) as stored:  # only its header is read
            suffix = kept_suffix(stored)
        if suffix is not None:
            return Content(image_HW3, read_bytes(path, ImageError, limit=FILE_BYTES), suffix)
    return Content(image_HW3, None, PNG)

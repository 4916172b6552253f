"""What one visitor of the page has: a picture or a video, a lens, points, files; no web in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from PIL import Image

from clipdepth_plugin.app.model import DepthModel, focal_length
from clipdepth_plugin.app.shown import Point, Shown
from clipdepth_plugin.errors import ClipDepthError, ImageError, NoDepthError
from clipdepth_plugin.files.exif import exif_focal
from clipdepth_plugin.files.pictures import opened_image, upright_rgb
from clipdepth_plugin.files.videos import Frame, Video

MAX_PIXELS = 1 << 24
"""Of a picture on the page."""
MOST_FRAMES = 300
"""Of a video on the page: ten seconds of most cameras."""
_MOST_SESSIONS = 32


class RenderVideo(Protocol):
    """Writes a video beside its depth, at most ``MOST_FRAMES`` of it."""

    def __call__(
        self, path: Path, folder: Path, focal_px: float | None, advance: Callable[[float], object]
    ) -> tuple[Path, str]:
        """The file in ``folder``, and what is said of it; ``advance`` is told the share done."""


class Session:
    """One visitor's.

    Attributes:
        lock: To be held while it is called.
        points: That were clicked; two make a length.
    """

    def __init__(self, model: DepthModel, render_video: RenderVideo, parent: Path) -> None:
        """``parent``: where uploads are, and its folder, under a name that nobody guesses."""
        self.lock = threading.Lock()
        self.points: list[Point] = []
        self._model, self._render_video, self._parent = model, render_video, parent
        self._folder = parent / secrets.token_hex(16)
        self._folder.mkdir(mode=0o700)
        self._round = self._folder / "0"
        self._files = 0
        self._uploads: list[Path] = []
        self._video: Path | None = None
        self._shown: Shown | None = None
        self._lens: tuple[float | None, str] = None, ""

    @property
    def shown(self) -> Shown:
        """The picture and its depth.

        Raises:
            NoDepthError: There is none yet.
        """
        if self._shown is None:
            raise NoDepthError("there is no picture yet: drop one, or take one with the webcam")
        return self._shown

    @property
    def is_empty(self) -> bool:
        """Whether there is no picture."""
        return self._shown is None

    def close(self) -> None:
        """Removes its files, and those that it was given."""
        self.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        for path in self._uploads:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets the picture or video."""
        self.points, self._shown, self._lens = [], None, (None, "")
        shutil.rmtree(self._round, ignore_errors=True)
        if self._video is not None:
            self._video.unlink()
            self._video = None

    def open_picture(self, path: Path) -> None:
        """Takes a picture and the lens that its EXIF says.

        Raises:
            ClipDepthError: It can't be read, or has no depth.
        """
        self.clear()
        self._take(path)
        with opened_image(path.read_bytes(), path.name, max_pixels=MAX_PIXELS) as stored:
            self._lens = exif_focal(stored.getexif(), stored.size), "as its EXIF says"
            image = upright_rgb(stored, path.name)
        self._see(image, path.stem)

    def open_video(self, path: Path) -> float:
        """Takes a video and shows its first frame.

        Returns:
            How many seconds of it can be shown.

        Raises:
            ClipDepthError: It can't be read.
        """
        self.clear()
        self._take(path)
        kept = self._folder / path.name
        os.link(path, kept)  # visitors that upload the same share the file
        self._video = kept
        with _by_name(kept), Video(kept, max_pixels=MAX_PIXELS) as video:
            seconds = float(min(video.frames or MOST_FRAMES, MOST_FRAMES) / video.rate)
        self.show_frame(0)
        return seconds

    def show_frame(self, seconds: float) -> None:
        """Takes the frame at a time of the video.

        Raises:
            ClipDepthError: There is no video, or it can't be read so far.
        """
        path, found = self._needs_video(), None
        with _by_name(path), Video(path, max_pixels=MAX_PIXELS) as video:
            for number, frame in enumerate(one for one in video.items() if isinstance(one, Frame)):
                found = frame.image_HW3
                if frame.time * video.time_base >= seconds or number + 1 >= MOST_FRAMES:
                    break
        assert found is not None  # else items() raises
        self._see(Image.fromarray(found), path.stem)

    def colour_video(self, advance: Callable[[float], object]) -> tuple[Path, str]:
        """The video beside its depth as a file, and what is said of it.

        Raises:
            ClipDepthError: There is no video, or it can't be read.
        """
        path = self._needs_video()
        focal = self._lens[0] if self._model.canonical else None
        with _by_name(path):
            film, said = self._render_video(path, self._new_folder(), focal, advance)
        return film, said.replace(str(path), path.name)

    def turn_lens(self, degrees: float) -> None:
        """Takes a lens of this field of view along the longer side; points stay.

        Raises:
            ClipDepthError: There is no picture yet.
        """
        image, points = self.shown.image, self.points
        self._lens = focal_length(degrees, image), "as set here"
        self._see(image, self.shown.name)
        self.points = points

    def click(self, point: Point) -> None:
        """Takes a point; a third one begins anew. Points beside the picture are none."""
        if self.shown.has(point):
            self.points = [*self.points, point] if len(self.points) < 2 else [point]

    def save(self, picture: Image.Image) -> Path:
        """A PNG of it, which is there until another picture is shown."""
        path = self._new_folder() / "picture.png"
        picture.save(path, compress_level=1)
        return path

    def write_files(self) -> list[Path]:
        """Those of ``Shown.write_files``, which are there until another picture is shown."""
        return self.shown.write_files(self._new_folder())

    def _take(self, path: Path) -> None:
        """Notes an upload, which is removed with the session: until then the browser shows it.

        Whoever calls the page without a browser may name any file.
        """
        if not is_below(path, self._parent) or not path.is_file():
            raise ImageError("only uploaded files are taken")
        self._uploads.append(path)

    def _see(self, image: Image.Image, name: str) -> None:
        shutil.rmtree(self._round, ignore_errors=True)
        focal, lens = self._lens
        depth = self._model(image, focal)
        own = self._model.own_focal(image)
        if focal is None:
            focal = own
            lens = f"assumed: {'that of the head' if self._model.canonical else 'that of phones'}"
        factor = focal / own if self._model.canonical else None
        self._shown = Shown(name, image, depth, focal, lens, factor)
        self.points = []

    def _new_folder(self) -> Path:
        """Another one each time: browsers keep what they had from an address."""
        self._files += 1
        folder = self._round / str(self._files)
        folder.mkdir(parents=True)
        return folder

    def _needs_video(self) -> Path:
        if self._video is None:
            raise NoDepthError("there is no video yet: drop one")
        return self._video


class Sessions:
    """All visitors', by a key that each has to itself; beyond a number the oldest is forgotten."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self._of: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """A visitor's session, made on the first call."""
        with self._lock:
            if key not in self._of:
                self._of[key] = self._make()
            self._of.move_to_end(key)
            oldest = next(iter(self._of)) if len(self._of) > _MOST_SESSIONS else None
            found = self._of[key]
        if oldest is not None:
            self.forget(oldest)
        return found

    def forget(self, key: str) -> None:
        """Closes a visitor's session."""
        with self._lock:
            session = self._of.pop(key, None)
        if session is not None:
            with session.lock:
                session.close()


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, wherever its links and dots lead."""
    try:
        return path.is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a loop of links; a zero byte
        return False


@contextlib.contextmanager
def _by_name(path: Path) -> Iterator[None]:
    """Errors name a file without its folder, which is nothing to visitors."""
    try:
        yield
    except ClipDepthError as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error

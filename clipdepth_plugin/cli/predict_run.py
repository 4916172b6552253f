"""A run of ``clipdepth predict``: pictures in batches, then videos; what was done is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from clipdepth_plugin.cli.console import bar
from clipdepth_plugin.cli.predict_cameras import View, ViewMaker
from clipdepth_plugin.cli.predict_files import Predicted, Wanted, write_files
from clipdepth_plugin.cli.predict_inputs import Inputs
from clipdepth_plugin.cli.predict_sources import MapSource
from clipdepth_plugin.cli.predict_videos import VideoPrediction
from clipdepth_plugin.cli.started import STARTED
from clipdepth_plugin.cli.stopping import stopped_gently
from clipdepth_plugin.errors import ClipDepthError, ImageError, NoDepthError, printable
from clipdepth_plugin.files.pictures import INVERSE_SUFFIX, load_image

if TYPE_CHECKING:
    from clipdepth_plugin.cli.predict_rgbd import RgbdFolder


class Run:
    """One run; ``source`` is opened by whoever calls it."""

    def __init__(
        self,
        source: MapSource,
        wanted: Wanted,
        make_view: ViewMaker,
        *,
        folder: Path,
        batch_size: int,
        max_pixels: int,
        frames: bool,
        rgbd: RgbdFolder | None,
    ) -> None:
        """Keeps all of it.

        Args:
            source: Of the maps.
            wanted: Files of each picture.
            make_view: From a picture to its view.
            folder: Where they go.
            batch_size: Pictures that are predicted together.
            max_pixels: Pictures with more are refused.
            frames: Whether the files of a video's frames are written.
            rgbd: An RGB-D folder that gets everything, too; opened by whoever calls it.
        """
        self._source, self._wanted, self._make_view = source, wanted, make_view
        self._folder, self._batch_size, self._max_pixels = folder, batch_size, max_pixels
        self._frames, self._rgbd = frames, rgbd
        self._unreadable: list[ClipDepthError] = []
        self._empty: list[Path] = []
        self._is_first = True
        self._done = 0

    def __call__(self, inputs: Inputs, console: Console) -> int:
        """Predicts all; the exit code."""
        self._console = console
        with stopped_gently() as stopped:
            self._pictures(inputs.images, stopped)
            for video in inputs.videos:
                if not stopped():
                    self._video(video, stopped)
            is_stopped = stopped()
        if inputs.images:
            console.print(f"{self._done} depth maps in {self._folder}")
        if self._rgbd is not None:
            console.print(f"{self._rgbd.written} frames in the RGB-D folder {self._rgbd.folder}")
        if is_stopped:
            pictures = f", {self._done} of {len(inputs.images)} pictures" if inputs.images else ""
            console.print(f"stopped by Ctrl-C{pictures}; what is written is whole", style="yellow")
        if not self._source.says.metric:
            console.print(
                f"relative depth, no metres: NAME{INVERSE_SUFFIX} is inverse depth with a scale "
                "and a shift of each picture's own"
            )
        for path in self._empty:
            text = f"no depth, as it is of one colour: {printable(path)}"
            console.print(text, style="yellow")
        for error in self._unreadable:
            console.print(f"not done: {error}", style="red")
        return 1 if self._unreadable or is_stopped else 0

    def _pictures(self, images: Sequence[Path], stopped: Callable[[], bool]) -> None:
        step = self._batch_size
        with bar(self._console, "depth", len(images), shown=len(images) > 1) as advance:
            for start in range(0, len(images), step):
                if stopped():
                    return
                paths = images[start : start + step]
                if start and paths[0].parent != images[start - 1].parent:
                    self._source.cut()
                read: list[tuple[Path, View]] = []
                for path in paths:
                    try:
                        image = load_image(path, max_pixels=self._max_pixels)
                        read.append((path, self._make_view(image, path)))
                    except ImageError as error:
                        self._unreadable.append(error)
                predicted = self._predict([view for _, view in read])
                for (path, _), one in zip(read, predicted, strict=True):
                    self._write(path, one)
                advance(len(paths))

    def _write(self, path: Path, one: Predicted) -> None:
        if one.maps.is_empty:
            self._empty.append(path)
        self._done += self._write_files(self._folder / path.stem, one)
        if self._rgbd is not None:
            try:
                self._rgbd.picture(path, one)
            except ImageError as error:
                self._unreadable.append(error)

    def _write_frame(self, video: Path, number: int, one: Predicted) -> None:
        if self._frames:
            folder = self._folder / video.stem
            folder.mkdir(exist_ok=True)
            self._write_files(folder / f"{number:06d}", one)
        if self._rgbd is not None:
            self._rgbd.frame(video, number, one)

    def _write_files(self, stem: Path, one: Predicted) -> bool:
        try:
            write_files(stem, one, self._wanted)
        except NoDepthError as error:
            self._unreadable.append(NoDepthError(f"{printable(stem)}: {error}"))
            return False
        return True

    def _video(self, path: Path, stopped: Callable[[], bool]) -> None:
        prediction = VideoPrediction(
            self._folder,
            self._predict,
            self._make_view,
            batch_size=self._batch_size,
            max_pixels=self._max_pixels,
            write_frame=self._write_frame,
        )
        self._source.cut()
        try:
            with bar(self._console, printable(path.name), None) as advance:
                ended = prediction(path, stopped, advance)
        except ImageError as error:
            self._unreadable.append(error)
            return
        if ended.frames:
            self._console.print(ended.said)
        if ended.error is not None:
            self._unreadable.append(ended.error)

    def _predict(self, views: list[View]) -> list[Predicted]:
        focals = [view.focal_px for view in views]
        says = self._source.says
        reads_focal = says.metric and says.canonical_focal is not None
        known = reads_focal and any(one is not None for one in focals)
        images: list[Image.Image] = [view.image for view in views]
        maps = self._source.maps(images, focals if known else None)
        if self._is_first and maps:
            self._is_first = False
            seconds = time.perf_counter() - STARTED
            self._console.print(f"first map {seconds:.2f} s after the start")
        return [
            Predicted(view, one.where(view.seen_HW)) for view, one in zip(views, maps, strict=True)
        ]

"""The sequences of a labelled folder: which frames are done, and the cameras of all.

The files are the only state. ``intrinsics.json`` is written now and then, and at the end; what a
killed run did not write of it is read from the frames' depth files when a run goes on.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from pathlib import Path

from pydantic import TypeAdapter

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import DataError, DepthFileError
from clipdepth_plugin.files.atomic import remove_leftovers, write_atomically
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.locks import LOCK_FILE, waiting_lock
from clipdepth_plugin.files.paths import is_folder, names_in
from clipdepth_plugin.files.problems import checked_type
from clipdepth_plugin.labelling.frames import FrameFiles
from clipdepth_plugin.settings import GivenCamera

INTRINSICS_FILE = "intrinsics.json"
_LISTED = 8
_OPEN = 64
_EVERY = 256
_GROWTH = 0.125
_WAIT = 60.0
_JSON_BYTES = 64 * MIB
Camera = Intrinsics | None
_CAMERAS: TypeAdapter[dict[str, Camera]] = TypeAdapter(dict[str, GivenCamera | None])


class Sequences:
    """The folders ``<split>/<sequence>``; used by several threads at once."""

    def __init__(self, root: Path, files: FrameFiles) -> None:
        """Nothing is read or made yet."""
        self._root, self._files = root, files
        self._lock = threading.Lock()
        self._done: OrderedDict[str, set[str]] = OrderedDict()
        self._new: OrderedDict[str, dict[str, Camera]] = OrderedDict()
        self._written: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether a frame ``<sequence>/<frame>`` is done. Asked by one thread, in order."""
        sequence, _, frame = name.partition("/")
        if sequence not in self._done:
            self._done[sequence] = self._found(sequence)
            while len(self._done) > _LISTED:
                self._done.popitem(last=False)
        self._done.move_to_end(sequence)
        return frame in self._done[sequence]

    def folder(self, name: str) -> tuple[Path, str]:
        """The folder of a frame ``<sequence>/<frame>``, made where it is missing, and its name.

        Raises:
            DepthFileError: It can't be made.
        """
        sequence, _, frame = name.partition("/")
        folder = self._root / sequence
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DepthFileError(f"{folder}: can't be made ({error.strerror})") from error
        return folder, frame

    def add(self, name: str, camera: Camera) -> None:
        """Takes a frame that was written."""
        sequence, _, frame = name.partition("/")
        self._add(sequence, {frame: camera})

    def flush(self) -> None:
        """Writes the cameras of every frame so far."""
        while True:
            with self._lock:
                if not self._new:
                    return
                sequence, cameras = self._new.popitem(last=False)
            self._merge(sequence, cameras)

    def _add(self, sequence: str, cameras: dict[str, Camera]) -> None:
        due: list[tuple[str, dict[str, Camera]]] = []
        with self._lock:
            new = self._new.setdefault(sequence, {})
            new.update(cameras)
            # In proportion to what is there: the whole is rewritten each time.
            if len(new) >= max(_EVERY, _GROWTH * self._written.get(sequence, 0)):
                due.append((sequence, self._new.pop(sequence)))
            while len(self._new) > _OPEN:
                due.append(self._new.popitem(last=False))
        for one in due:
            self._merge(*one)

    def _found(self, sequence: str) -> set[str]:
        """The whole frames of a sequence; those without a camera's entry get one."""
        folder = self._root / sequence
        if not is_folder(folder):
            return set()
        remove_leftovers(folder)
        names = names_in(folder, DataError)
        done = self._files.whole(names)
        path = folder / INTRINSICS_FILE
        known = _read(path) if INTRINSICS_FILE in names else {}
        self._written[sequence] = len(known)
        lost = done - known.keys()
        if lost:
            self._add(sequence, {frame: self._files.camera(folder, frame) for frame in lost})
        return done

    def _merge(self, sequence: str, cameras: dict[str, Camera]) -> None:
        folder = self._root / sequence
        path = folder / INTRINSICS_FILE
        with waiting_lock(folder / LOCK_FILE, _WAIT, DepthFileError):
            known = _read(path) if path.exists() else {}
            merged = {**known, **cameras}
            if merged != known:
                write_atomically(path, json.dumps(merged, sort_keys=True, indent=0).encode())
        self._written[sequence] = len(merged)


def _read(path: Path) -> dict[str, Camera]:
    tree = read_json(path, DataError, limit=_JSON_BYTES)
    return checked_type(_CAMERAS, tree, str(path), DataError)

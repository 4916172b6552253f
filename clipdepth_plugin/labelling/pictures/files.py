"""Picture files, folders with those below them, and globs.

A folder and each folder below it is a sequence. A file that is named is in the sequence of its
folder. ``intrinsics.json`` beside the pictures, as in an RGB-D folder, is read.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter

from clipdepth_plugin.arguments import Intrinsics
from clipdepth_plugin.errors import DataError, ImageError, printable
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.files.paths import is_folder, names_in, read_bytes, status
from clipdepth_plugin.files.pictures import OUR_SUFFIXES, SUFFIXES
from clipdepth_plugin.files.problems import checked_type
from clipdepth_plugin.files.videos import is_video
from clipdepth_plugin.labelling.names import SEQUENCE_FRAMES, frame_name, sequence_name
from clipdepth_plugin.labelling.pictures.decoding import FILE_BYTES, decoded
from clipdepth_plugin.labelling.pictures.kinds import (
    Content,
    Options,
    Pictures,
    PictureSpec,
    Unread,
    register_pictures,
)
from clipdepth_plugin.settings import GivenCamera

INTRINSICS_FILE = "intrinsics.json"
_JSON_BYTES = 16 * MIB
_CAMERAS: TypeAdapter[dict[str, Intrinsics | None]] = TypeAdapter(dict[str, GivenCamera | None])
_MAGIC = re.compile(r"[*?\[]")


class PictureFiles(Pictures):
    """Files on disk, sequence by sequence."""

    def __init__(self, titles: Mapping[str, str], sequences: Mapping[str, tuple[str, ...]]) -> None:
        """``sequences``: name -> (folder, names of files); without names all pictures in it."""
        self.titles = titles
        self._sequences = list(sequences.items())

    @property
    def parts(self) -> int:
        """See ``Pictures``."""
        return len(self._sequences)

    @property
    def folders(self) -> list[str]:
        """See ``Pictures``."""
        return [folder for _, (folder, *_) in self._sequences]

    def part(self, number: int) -> Iterator[Unread]:
        """See ``Pictures``."""
        sequence, (folder, *named) = self._sequences[number]
        files, taken = named or _picture_names(folder), dict[str, str]()
        if len(files) > SEQUENCE_FRAMES:
            raise ImageError(
                f"{printable(folder)}: {len(files)} pictures in one folder, more than "
                f"{SEQUENCE_FRAMES}, are slow to list in every tool; move them into several"
            )
        for file in files:
            path = Path(folder) / file
            frame = frame_name(path.stem)
            other = taken.setdefault(frame, file)
            if other != file:
                raise DataError(
                    f"{printable(folder)}: {printable(other)} and {printable(file)} would be the "
                    f"same frame, {frame}; give a glob that takes one of them, such as "
                    f"'{printable(folder)}/*{path.suffix}'"
                )
            yield Unread(f"{sequence}/{frame}", str(path), functools.partial(_read, path))

    def length(self, number: int) -> int:
        """See ``Pictures``."""
        _, (folder, *named) = self._sequences[number]
        return len(named) or len(_picture_names(folder))


def _read(path: Path) -> Content:
    encoded = read_bytes(path, ImageError, limit=FILE_BYTES)
    return decoded(encoded, str(path), _camera(path))


def _camera(picture: Path) -> Intrinsics | None:
    path = picture.with_name(INTRINSICS_FILE)
    if not os.path.lexists(path):
        return None
    return _cameras(path, status(path, DataError).st_mtime_ns).get(picture.stem)


@functools.lru_cache(8)
def _cameras(path: Path, _: int) -> dict[str, Intrinsics | None]:
    """The cameras of a file in a state of it."""
    tree = read_json(path, DataError, limit=_JSON_BYTES)
    return checked_type(_CAMERAS, tree, str(path), DataError)


def _is_plain(spec: PictureSpec) -> bool:
    return isinstance(spec, str) and not re.match(r"(lerobot|hf|webdataset):", spec)


def _is_folder(spec: PictureSpec) -> bool:
    return isinstance(spec, str) and is_folder(Path(spec))


def _is_glob(spec: PictureSpec) -> bool:
    return (
        isinstance(spec, str)
        and _is_plain(spec)
        and not os.path.lexists(spec)
        and bool(_MAGIC.search(spec))
    )


def _is_file(spec: PictureSpec) -> bool:
    if not isinstance(spec, str) or is_video(spec) or not _is_plain(spec):
        return False
    return not is_folder(Path(spec)) and not _is_glob(spec)


def searched_root(spec: PictureSpec) -> str | None:
    """The folder of which all is searched, however deep; None where that is bounded."""
    if _is_folder(spec):
        return str(spec)
    return _root_of(str(spec)) if _is_glob(spec) and "**" in str(spec) else None


def _root_of(pattern: str) -> str:
    start = re.split(r"[/\\](?=[^/\\]*[*?\[])", pattern, maxsplit=1)[0]
    if not start or _MAGIC.search(start):
        start = Path(pattern).anchor or "."
    return os.path.abspath(start)  # noqa: PTH100


@register_pictures("folder", recognises=_is_folder)
def open_folder(spec: str, options: Options) -> Pictures:
    """A folder and all below it, hidden ones left out."""
    del options
    root = os.path.abspath(spec)  # noqa: PTH100
    sequences: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to one above, or beside
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if any(map(_is_picture, files)):
            sequences[folder_sequence(folder, root)] = (folder,)
    if not sequences:
        raise ImageError(
            f"{printable(spec)}: no pictures in this folder or below it; known suffixes are "
            f"{' '.join(SUFFIXES)}; videos are named one by one, or by a glob"
        )
    return PictureFiles({folder_sequence(root, root): root}, sequences)


@register_pictures("glob", recognises=_is_glob)
def open_glob(spec: str, options: Options) -> Pictures:
    """What a pattern matches; ``**`` stands for any folders."""
    root = _root_of(spec)
    found = sorted(path for path in glob.iglob(spec, recursive=True) if not is_folder(Path(path)))  # noqa: PTH207
    videos = [path for path in found if is_video(path)]
    if videos:
        from clipdepth_plugin.labelling.pictures.videos import Videos

        if len(videos) < len(found):
            raise DataError(f"{spec}: matches pictures and videos; give a pattern for each")
        return Videos(videos, options)
    files = [path for path in found if _is_picture(os.path.basename(path))]  # noqa: PTH119
    if not files:
        raise ImageError(f"{printable(spec)}: matches no picture and no video")
    folders: dict[str, list[str]] = {}
    for path in files:
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        folders.setdefault(folder, []).append(name)
    sequences = {
        folder_sequence(folder, root): (folder, *names) for folder, names in sorted(folders.items())
    }
    return PictureFiles({folder_sequence(root, root): root}, sequences)


@register_pictures("file", recognises=_is_file)
def open_file(spec: str, options: Options) -> Pictures:
    """One picture, whatever its suffix."""
    del options
    folder, name = os.path.split(os.path.abspath(spec))  # noqa: PTH100
    if not os.path.lexists(spec):
        raise ImageError(f"{printable(spec)}: no such file or folder; check the path")
    sequence = folder_sequence(folder, folder)
    title = f"{sequence}/{frame_name(Path(name).stem)}"
    return PictureFiles({title: str(Path(folder) / name)}, {sequence: (folder, name)})


def folder_sequence(folder: str, root: str) -> str:
    """The name of a folder's sequence, from the root on; both are absolute."""
    title = os.path.basename(root) or "root"  # noqa: PTH119
    return sequence_name(title, *Path(os.path.relpath(folder, root)).parts)


def _picture_names(folder: str) -> list[str]:
    return [name for name in names_in(Path(folder), ImageError) if _is_picture(name)]


def _is_picture(name: str) -> bool:
    lower = name.lower()
    hidden = name.startswith(".")
    return lower.endswith(SUFFIXES) and not hidden and not lower.endswith(OUR_SUFFIXES)


def _raise(error: OSError) -> None:
    raise ImageError(f"{printable(error.filename)}: can't be read ({error.strerror})") from error

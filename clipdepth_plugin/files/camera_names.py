"""Cameras by the names of their pictures.

A file of cameras was often written elsewhere: its names have other folders before them, or no
suffix. So a picture and a name belong together where they end in the same folders and file, with
or without suffix; the more of them are the same, the better. Two cameras that fit alike are an
error, as one of them would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from clipdepth_plugin.errors import DataError, printable, quoted
from clipdepth_plugin.files.pictures import SUFFIXES
from clipdepth_plugin.files.videos import VIDEO_SUFFIXES
from clipdepth_plugin.lenses import Lens


class CameraFile:
    """The cameras of a file."""

    def __init__(self, path: Path, every: Lens | None, by_name: Mapping[str, Lens | None]) -> None:
        """``every``: of all pictures that have no name in ``by_name``."""
        self._path, self._every, self._by_name = path, every, by_name
        self._keys: dict[str, list[str]] = {}
        """A form of a name -> the first name of each camera that has it."""
        for name, lens in by_name.items():
            for form in _forms(name):
                known = self._keys.setdefault(form, [])
                if all(by_name[one] != lens for one in known):
                    known.append(name)

    def has(self, name: str) -> bool:
        """Whether it says something of the picture ``name``, if only that nothing is known."""
        return self._every is not None or any(form in self._keys for form in _forms(name))

    def of(self, name: str) -> Lens | None:
        """The camera of a picture; None where the file says that it is not known.

        Args:
            name: Its path, or ``<sequence>/<frame>`` as labels are called.

        Raises:
            DataError: The file does not name the picture, or several cameras fit alike.
        """
        if name in self._by_name:
            return self._by_name[name]
        for form in _forms(name):
            found = self._keys.get(form, [])
            if len(found) == 1:
                return self._by_name[found[0]]
            if found:
                raise DataError(
                    f"{printable(self._path)}: {quoted(name)} may be {quoted(found[0])} or "
                    f"{quoted(found[1])}, which have different cameras; name it in the file with "
                    "its own folder"
                )
        if self._every is None:
            known = f"it has {', '.join(map(quoted, list(self._by_name)[:3]))}"
            raise DataError(f"{printable(self._path)}: has no camera of {quoted(name)}; {known}")
        return self._every


def _forms(name: str) -> Iterator[str]:
    """How else it may be written, the longest first."""
    parts = Path(name).parts
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        yield tail
        if tail.lower().endswith((*SUFFIXES, *VIDEO_SUFFIXES)):
            yield tail.rpartition(".")[0]

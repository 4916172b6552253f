"""Files and folders by name: what is there, or why it can't be read, as our error.

The functions of ``pathlib`` raise on a name that is too long or a folder that may not be entered,
and opening a named pipe waits for its writer.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ClipDepthError, printable

Error = type[ClipDepthError]

LIST_BYTES = 1 << 26
"""Size of a text file that lists a set: a million lines."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def status(
    path: Path, error: Error, absent: str = "no such file or folder; check the path"
) -> os.stat_result:
    """What is at a path; ``absent`` says that nothing is, and what to do.

    Raises:
        ClipDepthError: ``error``; nothing is there, or it may not be known.
    """
    try:
        return os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise error(f"{printable(path)}: {absent}") from problem
    except (OSError, ValueError) as problem:  # ValueError: a null character
        raise error(f"{printable(path)}: can't be read ({_reason(problem)})") from problem


def check_file(path: Path, error: Error, absent: str = "no such file; check the path") -> int:
    """The size in bytes of a regular file, which can be opened without waiting.

    Raises:
        ClipDepthError: ``error``; it is missing, can't be read, or is a folder, pipe or device.
    """
    found = status(path, error, absent)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise error(f"{printable(path)}: is {kind}, expected a file")
    if not os.access(path, os.R_OK):
        raise error(f"{printable(path)}: can't be read (Permission denied)")
    return found.st_size


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False also where that may not be known."""
    return os.path.isdir(path)  # noqa: PTH112


def names_in(folder: Path, error: Error) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        ClipDepthError: ``error``; it can't be read.
    """
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except (OSError, ValueError) as problem:
        raise error(
            f"{printable(folder)}: the folder can't be read ({_reason(problem)})"
        ) from problem


class FolderNames:
    """Which files are there, by one listing of each folder."""

    def __init__(self, error: Error) -> None:
        """Nothing is listed yet; ``error`` is raised of a folder that can't be read."""
        self._error = error
        self._folders: dict[Path, dict[str, str | None]] = {}

    def find(self, path: Path) -> Path | None:
        """The file itself, or the only one whose name differs in upper and lower case alone."""
        if path.parent not in self._folders:
            self._folders[path.parent] = self._listed(path.parent)
        names = self._folders[path.parent]
        found = names[path.name] if path.name in names else names.get(path.name.casefold())
        return None if found is None else path.with_name(found)

    def _listed(self, folder: Path) -> dict[str, str | None]:
        """Names and their lower case -> name; None where several have it."""
        if not os.path.lexists(folder):  # False also where a part of it is a file
            return {}
        entries = names_in(folder, self._error)
        lower: dict[str, str | None] = {}
        for name in entries:
            lower[name.casefold()] = None if name.casefold() in lower else name
        return {**lower, **{name: name for name in entries}}


def read_bytes(
    path: StrPath, error: Error, *, limit: int, absent: str = "no such file; check the path"
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        ClipDepthError: ``error``; it can't be read, or is larger.
    """
    check_file(Path(path), error, absent)
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as problem:
        raise error(f"{printable(path)}: can't be read ({_reason(problem)})") from problem
    if len(content) > limit:
        raise error(
            f"{printable(path)}: larger than {limit} bytes, more than such a file ever holds"
        )
    return content


def read_text(path: Path, error: Error, absent: str = "no such file; check the path") -> str:
    """A text file in UTF-8, or in what its byte order mark says.

    Raises:
        ClipDepthError: ``error``; it can't be read, is too large, or is no text.
    """
    content = read_bytes(path, error, limit=LIST_BYTES, absent=absent)
    coding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as problem:
        raise error(f"{printable(path)}: is no text in UTF-8 ({problem.reason})") from problem
    if "\0" in text:
        raise error(f"{printable(path)}: has null characters; save it as text in UTF-8")
    return text


def _reason(problem: OSError | ValueError) -> str:
    return getattr(problem, "strerror", None) or str(problem)

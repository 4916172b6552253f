"""Files that appear whole or not at all, whenever the process ends.

They are written beside their path, synced to the disk and then renamed. What is being written is
locked, so that what a killed process left is told from what another one writes, and removed when
a process first writes into the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ClipDepthError, DepthFileError
from clipdepth_plugin.files.locks import LOCK_FILE, HeldError, lock, release

TEMPORARY = ".writing-"
"""Prefix of the names of what is being written; left over only by a killed process."""

Error = type[ClipDepthError]
_cleaned: set[Path] = set()
_TRIES = 100  # as many others may look for leftovers at the same moment


def write_atomically(
    path: StrPath,
    content: bytes | memoryview | Callable[[IO[bytes]], object],
    error: Error = DepthFileError,
) -> None:
    """Writes a file, replacing the one that is there.

    Args:
        path: Of the file; its folder has to be there.
        content: Of the file, or what writes it to an open file.
        error: The class of error.

    Raises:
        ClipDepthError: It can't be written (no room, no right); what was there still is.
    """
    path = Path(path)
    with _reported(path, error), _temporary(path.parent) as (temporary, locked):
        with open(locked.fileno(), "w+b", closefd=False) as file:
            _ = content(file) if callable(content) else file.write(content)
        os.fsync(locked.fileno())
        if os.name != "posix":  # an open file can't be renamed there
            release(locked)
        temporary.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def new_files(folder: Path, error: Error) -> Iterator[Path]:
    """Replaces files of a folder: yields a temporary folder whose files move into it at the end.

    The folder is made where it is missing, and what was made goes again if all fails.

    Raises:
        ClipDepthError: A file can't be written (no room, no right); those that were there still
            are.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with _reported(folder, error):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _temporary(folder, of_files=True) as (temporary, _):
                yield temporary
                files = sorted(set(temporary.iterdir()) - {temporary / LOCK_FILE})
                for file in files:
                    sync(file)
                for file in files:
                    file.replace(folder / file.name)
        except BaseException:
            for path in made:
                with contextlib.suppress(OSError):  # not made yet, or no longer empty
                    path.rmdir()
            raise


def sync(path: Path) -> None:
    """Makes a file's content or a folder's entries durable, where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes were writing in ``folder``; what others write now stays."""
    found: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # a folder yet to be made
        found += [one for one in entries if one.name.startswith(TEMPORARY)]
    for entry in found:
        if entry.is_symlink():
            continue
        # What it was when it was listed: a folder that has gone since is not made anew as a file.
        left, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
        with contextlib.suppress(OSError):  # also where its writer is alive
            _remove(left, lock(left / LOCK_FILE if is_folder else left, surely=True))


@contextlib.contextmanager
def _temporary(folder: Path, *, of_files: bool = False) -> Iterator[tuple[Path, io.FileIO]]:
    """A new file or folder of files in ``folder``, locked, and its lock; it goes at the end."""
    if (known := folder.absolute()) not in _cleaned:
        _cleaned.add(known)
        remove_leftovers(folder)
    temporary, file = _made(folder, of_files=of_files)
    try:
        yield temporary, file
    finally:
        _remove(temporary, file)


def _made(folder: Path, *, of_files: bool) -> tuple[Path, io.FileIO]:
    for tries_left in reversed(range(_TRIES)):
        temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            if of_files:
                temporary.mkdir()
            return temporary, lock(temporary / LOCK_FILE if of_files else temporary)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            # Another process may take it for a leftover before it is locked.
            if not tries_left or not isinstance(error, HeldError | FileNotFoundError):
                raise
    raise AssertionError


def _remove(temporary: Path, file: io.FileIO) -> None:
    """Removes it under its lock: else another one takes it before it goes, and loses it."""
    if os.name != "posix":  # an open file can't be removed there
        release(file)
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
    release(file)


@contextlib.contextmanager
def _reported(path: Path, as_error: Error) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise as_error(
            f"{path}: can't be written ({error.strerror or error}); what was there before is "
            "untouched. Check that the folder exists, may be written to, and has room on its disk"
        ) from error

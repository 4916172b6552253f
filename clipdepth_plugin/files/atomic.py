"""Files that appear whole or not at all, whenever the process ends.

They are written beside their path, synced to the disk and then renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ClipDepthError, DepthFileError

TEMPORARY = ".writing-"
"""Prefix of the names of what is being written; left over only by a killed process."""

Error = type[ClipDepthError]


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
    with _reported(path, error):
        temporary = _temporary(path)
        try:
            with temporary.open("xb") as file:
                _ = content(file) if callable(content) else file.write(content)
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
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
        temporary = folder / f"{TEMPORARY}{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            files = sorted(temporary.iterdir())
            for file in files:
                sync(file)
            for file in files:
                file.replace(folder / file.name)
            temporary.rmdir()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
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
    """Removes the files that a killed process was writing in ``folder``."""
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")  # the path's may be the longest


@contextlib.contextmanager
def _reported(path: Path, as_error: Error) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise as_error(
            f"{path}: can't be written ({error.strerror or error}); what was there before is "
            "untouched. Check that the folder exists, may be written to, and has room on its disk"
        ) from error

"""Files and folders that appear whole or not at all, whenever the process ends.

They are written beside their path, synced to the disk and then renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from clipdepth_plugin.errors import ClipDepthError, TrainingError

TEMPORARY = ".writing-"
"""Prefix of the names of what is being written; left over only by a killed process."""


def write_file(
    path: Path, content: bytes | memoryview, error: type[ClipDepthError] = TrainingError
) -> None:
    """Writes a file atomically, replacing the one that is there.

    Raises:
        TrainingError: It can't be written (no room, no right); what was there before is untouched.
            ``error`` is another class to raise.
    """
    with _os_errors_as(error, path):
        temporary = _temporary(path)
        try:
            write_synced(temporary, content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder atomically: yields a temporary one that becomes ``path`` at the end.

    Files in it are to be written with ``write_synced``. A folder that is at ``path`` is replaced.

    Raises:
        TrainingError: It can't be written (no room, no right); what was there before is untouched.
    """
    with _os_errors_as(TrainingError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, replaced = _temporary(path), _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            sync_folder(temporary)
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Writes a new file and waits until it is on the disk.

    Raises:
        OSError: As the system says.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content).cast("B")
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a folder's entries (a rename, a new file) durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing in ``folder``."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def _os_errors_as(kind: type[ClipDepthError], path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise kind(
            f"{path}: can't be written ({error.strerror or error}); what was there before is "
            "untouched. Check that the folder exists, may be written to and has room on its disk, "
            "then run it again (training with --resume)"
        ) from error

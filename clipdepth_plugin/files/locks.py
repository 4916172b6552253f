"""Locks on files and folders. The system releases them when their process ends, also by a kill."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from clipdepth_plugin.errors import ClipDepthError
from clipdepth_plugin.files.paths import is_folder, names_in

logger = logging.getLogger(__name__)

LOCK_FILE = ".clipdepth.lock"
"""In a locked folder; its text says who holds the lock."""

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_OFFSET = 1 << 30  # on Windows the locked byte can't be read: one beyond the text
_PAUSE = 0.02
_held: set[io.FileIO] = set()


class HeldError(OSError):
    """Another process, or another thread of this one, holds the lock; the text says who."""


def lock(path: Path, *, surely: bool = False) -> io.FileIO:
    """Makes or takes a file and locks it, without waiting, until ``release``.

    Where the file system has no locks, one warning says so.

    Raises:
        HeldError: It is locked.
        OSError: It can't be opened; with ``surely`` also where there are no locks.
    """
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    while True:
        file = io.FileIO(os.open(path, flags, 0o666), "r+")
        try:
            _lock(file.fileno(), surely=surely)
            if _is_at(file, path):
                _held.add(file)
                return file
        except BlockingIOError as error:
            owner = (file.read(200) or b"").decode(errors="replace").strip()
            file.close()
            raise HeldError(owner if owner.isprintable() and owner else "a process") from error
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it meanwhile


def release(file: io.FileIO) -> None:
    """Releases a lock."""
    file.close()
    _held.discard(file)


def check_new(folder: Path, error: type[ClipDepthError], rule: str) -> None:
    """Whether a folder holds nothing, or nothing but its lock; it need not be there.

    Raises:
        ClipDepthError: ``error``; it holds something. ``rule`` says why that is not taken.
    """
    names = set(names_in(folder, error)) - {LOCK_FILE} if is_folder(folder) else set()
    if names:
        raise error(f"{folder}: holds files ({min(names)}); {rule}: give another")


@contextlib.contextmanager
def locked_folder(folder: Path, error: type[ClipDepthError], what: str) -> Iterator[None]:
    """``holding`` with its errors as ours; ``what`` names the folder's use in them.

    Raises:
        ClipDepthError: Another process holds it, or the folder can't be made or written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(holding(folder))
        except HeldError as held:
            raise error(
                f"{folder}: {held} uses this {what} now, and two would mix their files; wait until "
                "it has ended, or use another folder"
            ) from held
        except OSError as problem:
            reason = problem.strerror or problem
            raise error(f"{folder}: can't be made or written to ({reason})") from problem
        yield


@contextlib.contextmanager
def waiting_lock(path: Path, seconds: float, error: type[ClipDepthError]) -> Iterator[None]:
    """Holds a file's lock, whose holder is waited for; the file goes at the end.

    Raises:
        ClipDepthError: ``error``; it is held for longer, or the file can't be made.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            file = lock(path)
            break
        except HeldError as held:
            if time.monotonic() > until:
                raise error(f"{path}: {held} holds this lock; wait until it has ended") from held
            time.sleep(_PAUSE)
        except OSError as problem:
            raise error(f"{path}: can't be made ({problem.strerror or problem})") from problem
    try:
        _say_holder(file)
        yield
    finally:
        _remove(file, path)
        release(file)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Holds a folder's lock.

    The folder is made where it is missing, and goes again where nothing was written into it.

    Raises:
        HeldError: Another process holds it; the text says which.
        OSError: The folder can't be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK_FILE
    file = _lock_in(folder)
    try:
        _say_holder(file)
        yield
    finally:
        _remove(file, path)
        release(file)
        for one in made:
            with contextlib.suppress(OSError):  # no longer empty
                one.rmdir()


def _say_holder(file: io.FileIO) -> None:
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _remove(file: io.FileIO, path: Path) -> None:
    if not file.closed and _is_at(file, path):  # it is closed in a forked process
        with contextlib.suppress(OSError):  # Windows does not remove open files
            path.unlink()


def _lock_in(folder: Path) -> io.FileIO:
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another holder removed the empty folder
            return lock(folder / LOCK_FILE)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _lock(descriptor: int, *, surely: bool) -> None:
    """Raises BlockingIOError where it is locked."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _OFFSET, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                raise BlockingIOError(*error.args) from error
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if surely or error.errno not in _UNSUPPORTED:
            raise
        _warn_of_no_locks(str(error))


@functools.cache
def _warn_of_no_locks(error: str) -> None:
    logger.warning(
        "this file system has no locks (%s): nothing keeps two processes from writing into one "
        "folder of it",
        error,
    )


def _is_at(file: io.FileIO, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    return False


def _let_go() -> None:
    """In a forked child: a loader's worker that outlives a killed process must not keep a lock."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

"""Standard streams that do not turn a command's success into a failure.

A reader that has gone away (``| head``) or a closed stream loses output, nothing else. A character
that the stream's encoding lacks is written as the nearest ASCII one or as its escape.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LOST = (errno.EPIPE, errno.EBADF, errno.EIO)
_NEAREST = str.maketrans("↑↓…·•●─━│┃╭╮╰╯╸╺", "^v..**--||++++--")
_NARROWEST = 40
"""Columns that layouts are made for; a terminal that says less wraps the lines itself."""


class _Lasting(io.FileIO):
    """A file descriptor whose reader may go away."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in _LOST:
                raise
            return memoryview(data).nbytes


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_NEAREST)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("clipdepth", _nearest)


def prepare_streams() -> None:
    """Replaces ``sys.stdout`` and ``sys.stderr`` for the rest of a process that runs commands."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # it now stands for a closed stream, whose number a file would get otherwise
    os.close(spare)
    for name in ("stdout", "stderr"):
        setattr(sys, name, _lasting(getattr(sys, name)))
    for name in ("COLUMNS", "TERMINAL_WIDTH"):  # rich and typer take them as they are
        given = os.environ.get(name, "80")
        if not (given.isascii() and given.isdecimal()):
            del os.environ[name]
        elif len(given) > 4 or int(given) < _NARROWEST:
            os.environ[name] = "9999" if len(given) > 4 else str(_NARROWEST)


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before Python started
        return open(os.devnull, "w", encoding="utf-8", errors="clipdepth")  # noqa: PTH123
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is one layer alone
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # a notebook's or a test's
    if type(raw) is not io.FileIO:
        stream.reconfigure(errors="clipdepth")
        return stream
    stream.flush()
    lasting = io.BufferedWriter(_Lasting(raw.fileno(), "wb", closefd=False))
    return io.TextIOWrapper(
        lasting,
        encoding=stream.encoding,
        errors="clipdepth",
        line_buffering=stream.line_buffering or raw.isatty() or stream is sys.stderr,
        write_through=stream.write_through,
    )


def flush_output() -> bool:
    """Writes what stdout still holds; False where that fails (a full disk)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"error: the output could not be written ({error.strerror})\n")
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return False
    return True

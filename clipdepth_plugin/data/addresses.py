"""Where data may come from: paths, and addresses whose scheme is allowed by name.

Nothing else reaches the libraries that open addresses: for them a scheme may be a shell command
(``pipe:``), the start of another program, or a chain (``::``) of several file systems.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, cast

from clipdepth_plugin.data.files import require
from clipdepth_plugin.errors import DataError, quoted, shortened

SCHEMES = ("file", "http", "https", "hf")
MAX_SHARDS = 100_000

_TIMEOUT = 60.0
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d{1,18})?\}")


def checked_address(text: str) -> str:
    """An address with its scheme in small letters, or a local path as it is.

    Raises:
        DataError: Another scheme, a chain of addresses, or characters that neither has.
    """
    shown = quoted(text)
    if not text.isprintable() or text != text.strip():
        raise DataError(f"{shown}: has blanks around it or characters that can't be printed")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    scheme = scheme.lower()
    if scheme not in SCHEMES or not rest or "::" in rest or re.search(r"\s", rest):
        raise DataError(
            f"{shown}: data comes from a path or an address of {', '.join(SCHEMES)}; commands and "
            "other schemes are not run from a config"
        )
    if scheme == "file":
        parts = urllib.parse.urlsplit(f"file://{rest}")
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"{shown}: file:// names a file of this machine, file:///folder/...")
        return checked_address(urllib.request.url2pathname(parts.path))
    return f"{scheme}://{rest}"


def expanded_shards(location: str) -> list[str]:
    """The files of ``a-{000..012}.tar::b.tar``, each checked; local ones exist.

    Raises:
        DataError: As ``checked_address``; a local file is missing, or there are too many.
    """
    shards: list[str] = []
    for one in islice(_expanded(location), MAX_SHARDS + 1):
        shard = checked_address(one)
        if "://" not in shard and not _is_file(shard):
            raise DataError(
                f"{shortened(shard, 1000)}: no such tar file (commands are not run); check root"
            )
        shards.append(shard)
    if len(shards) > MAX_SHARDS:
        raise _too_many(location)
    return shards


def _expanded(location: str) -> Iterator[str]:
    braces = require("braceexpand", "stream", "format webdataset")
    spans = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(location)]
    if sum(spans) > MAX_SHARDS or re.search(r"\d{19}", location):
        raise _too_many(location)
    try:
        for part in location.split("::"):
            yield from braces.braceexpand(part)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shortened(location)}: braces that don't fit ({error})") from error


def _too_many(location: str) -> DataError:
    return DataError(f"{shortened(location)}: more than {MAX_SHARDS} files; give fewer")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long
        return False


def open_address(address: str) -> IO[bytes]:
    """Opens what ``checked_address`` gave."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return Path(address).open("rb")
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return cast("IO[bytes]", HfFileSystem().open(rest, "rb"))
    assert scheme in ("http", "https")
    # Redirections to other schemes than http, https and ftp are refused by urllib.
    return cast("IO[bytes]", urllib.request.urlopen(address, timeout=_TIMEOUT))  # noqa: S310


def check_inside(relative: str, where: str) -> str:
    """A path that a data set's own file names, if it stays below the folder it is taken from.

    Raises:
        DataError: It is absolute, goes up (``..``), or is an address.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "://" in relative or "::" in relative:
        raise DataError(f"{where}: names {quoted(relative)}, outside of the data set")
    return relative

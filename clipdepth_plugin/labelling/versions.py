"""What tells two states of a source apart: a hash of its files or its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.files.paths import check_file


def files_version(files: Iterable[Path]) -> str:
    """A hash of the files' contents and names, whatever folder they lie in.

    Raises:
        SourceError: One can't be read, or is no regular file.
    """
    digests = []
    for path in sorted(files):
        check_file(path, SourceError)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise SourceError(f"{path}: can't be read ({error.strerror})") from error
        digests.append(path.name.encode() + b"\0" + digest)
    return bytes_version(digests)


def bytes_version(parts: Iterable[bytes]) -> str:
    """A hash of the hashes of all parts, in their order."""
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return f"sha256:{hashlib.sha256(digests).hexdigest()}"

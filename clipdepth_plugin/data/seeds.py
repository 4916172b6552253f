"""Seeds from names and numbers, the same everywhere and always."""

from __future__ import annotations

import hashlib


def mixed_seed(*parts: int | str) -> int:
    """A seed of 32 well-mixed bits."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")

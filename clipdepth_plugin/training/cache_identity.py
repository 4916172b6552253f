"""What a token cache's records depend on beside their keys: its identity, compared with a run's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdepth_plugin.errors import TrainingError, quoted, shortened
from clipdepth_plugin.files.documents import read_json

OPTIONAL = ("context", "pixels")
"""Fields of an identity and tensors of a record that not all heads read."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A hash of it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def checked_identity(path: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a cache that holds all that ``now`` names.

    Raises:
        TrainingError: It can't be read, or was made by something else.
    """
    try:
        stored = read_json(path, TrainingError)
        if not isinstance(stored, dict):
            raise TrainingError(f"{path}: has no fields")
    except TrainingError as error:
        raise TrainingError(f"cache {error}; remove the cache's folder, or take another") from error
    differing = [
        name
        for name in {**now, **stored}
        if stored.get(name) != now.get(name) and not is_spare(name, stored, now)
    ]
    if differing:
        reasons = "; ".join(
            f"{name}: {quoted(stored.get(name), 400)} there, {now.get(name)!r} now"
            for name in differing[:8]
        )
        names = shortened(", ".join(differing), 400)
        raise TrainingError(
            f"cache {path.parent} was made by another {names} ({reasons}). Set cache.folder to "
            "another folder, or remove this one"
        )
    return stored


def is_spare(name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a cache holds more of a field than is asked for, which is left unread."""
    held, asked = stored.get(name), now.get(name)
    if name in OPTIONAL:
        return asked is None and held is not None
    if name != "levels" or not isinstance(held, list) or not isinstance(asked, list):
        return False
    # These contexts are of the deepest level that is stored.
    of_last = now.get("context") in ("cls", "mean") and held[-1:] != asked[-1:]
    return not of_last and all(level in held for level in asked)

"""Names of sequences and frames: safe as file names, the same in every run, no two alike.

A name depends on the picture's own place alone, so that pictures that are added later change none.
What is no plain name gets a hash of all that was replaced.
"""

from __future__ import annotations

import hashlib
import re

from clipdepth_plugin.files.pictures import OUR_SUFFIXES

SEQUENCE_FRAMES = 50_000
"""A folder of more files, and a list of more cameras, is slow."""

_PLAIN = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_JOINT = "__"
_LONGEST = 120
_OUR_STEMS = tuple(suffix.rpartition(".")[0] for suffix in OUR_SUFFIXES)


def frame_name(stem: str) -> str:
    """The name of a frame whose file (or key, or number) is called ``stem``."""
    return _safe([stem], plain=True)


def sequence_name(*parts: str, index: int = 0) -> str:
    """The name of a sequence, from the folders that lead to it: one level of folders.

    ``index``: of a frame in a video or a shard, of which each ``SEQUENCE_FRAMES`` are a sequence.
    """
    if index >= SEQUENCE_FRAMES:
        parts = (*parts, f"{index // SEQUENCE_FRAMES:03d}")
    return _safe(parts, plain=not any(_has_joint(part) for part in parts))


def _safe(parts: tuple[str, ...] | list[str], *, plain: bool) -> str:
    joined = _JOINT.join(parts)
    plain = plain and len(joined) <= _LONGEST and all(map(_PLAIN.fullmatch, parts))
    if plain and not joined.lower().endswith(_OUR_STEMS):
        return joined
    digest = hashlib.sha256("/".join(parts).encode(errors="surrogateescape")).hexdigest()[:10]
    start = re.sub(r"[^A-Za-z0-9_-]", "_", joined).strip("_")[:_LONGEST]
    return f"{start or 'x'}-{digest}"


def _has_joint(part: str) -> bool:
    return _JOINT in part or part.startswith("_") or part.endswith("_")

"""The presets: names for sets of a head's fields, with levels of a tower of 12 blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

_FAST: dict[str, Any] = {
    "decoder": "compact",
    "structural_levels": (7, 5, 4),
    "channels": (160, 96, 64),
    "film_hidden": 128,
    "activation": "log",
    "norm": "none",
    "auxiliary": 0,
    "dropout": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "spaceclip": {"structural_levels": (2, 1, 0)},
    "spaceclip-middle": {"structural_levels": (7, 5, 4)},
    "fast": _FAST,
    "guided": {**_FAST, "stem_channels": 32, "likeness_channels": 8, "join_kernel": 1},
}
"""Name -> the fields that a preset sets; the other fields keep their defaults. A new preset is a
new entry."""


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}: there are {', '.join(PRESETS)}")
    return name


Preset = Annotated[str, AfterValidator(_known_preset)]
"""A name in ``PRESETS``."""


def scale_levels(levels: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Scales a preset's levels from 12 blocks to ``depth`` blocks: k * depth / 12, rounded."""
    return tuple(round(k * depth / 12) for k in levels)

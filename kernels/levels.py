"""A launch that reads several of the tower's levels: one pointer for each, eight at most.

Axes: B views, N patch tokens, D tower width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clipdepth_plugin.kernels.launch import device_function

if TYPE_CHECKING:
    import triton.language as tl

MOST_LEVELS = 8
"""One launch takes a pointer for each level."""

BLOCK_T = 32
"""Tokens of a tile."""


def too_many(levels: Sequence[Tensor]) -> str | None:
    """Why a kernel cannot take so many levels; None: it can."""
    count = len(levels)
    return f"it takes {MOST_LEVELS} levels, got {count}" if count > MOST_LEVELS else None


def with_one_stride(levels: list[Tensor]) -> list[Tensor]:
    """Levels as the kernels read them: rows contiguous, all with the same stride between views."""
    width = levels[0].shape[-1]
    strides = {x.stride() for x in levels}
    if len(strides) == 1 and levels[0].stride()[1:] == (width, 1):
        return levels
    return [x.contiguous() for x in levels]


def padded(levels: list[Tensor]) -> list[Tensor]:
    """Eight pointers: the levels, then the first of them again."""
    return levels + levels[:1] * (MOST_LEVELS - len(levels))


@device_function
def pick_pointer(level, x0, x1, x2, x3, x4, x5, x6, x7):  # type: ignore[no-untyped-def]
    """The ``level``-th of eight."""
    x = x0
    x = tl.where(level == 1, x1, x)
    x = tl.where(level == 2, x2, x)
    x = tl.where(level == 3, x3, x)
    x = tl.where(level == 4, x4, x)
    x = tl.where(level == 5, x5, x)
    x = tl.where(level == 6, x6, x)
    return tl.where(level == 7, x7, x)

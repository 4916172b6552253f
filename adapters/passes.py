"""What a tower pass leaves behind: the wanted tokens, checked, until they are read.

Axes: B views, N tokens (T: prefix tokens included), D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.config import ContextKind
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.features import TowerFeatures

NOT_FIRED = (
    "the host was compiled, graphed or replayed before attach, an error ended its forward, or it "
    "leaves those blocks out"
)


@dataclass(frozen=True)
class Wanted:
    """What is tapped, and how tokens are laid out.

    Attributes:
        levels: The levels, ascending.
        context: Context kind, or None where no head asks.
        pixels: Whether the tower's input pixels are kept.
        width: D.
        num_prefix_tokens: Tokens to cut off in front.
        sequence_first: Whether blocks run (N, B, D).
        patch_size: (height, width) of a patch in pixels.
    """

    levels: tuple[int, ...]
    context: ContextKind | None
    pixels: bool
    width: int
    num_prefix_tokens: int
    sequence_first: bool
    patch_size: tuple[int, int]

    @classmethod
    def of(
        cls,
        tower: Tower,
        levels: tuple[int, ...],
        context: ContextKind | None,
        *,
        pixels: bool = False,
    ) -> Wanted:
        """What is wanted of a tower."""
        return cls(
            levels=levels,
            context=context,
            pixels=pixels,
            width=tower.width,
            num_prefix_tokens=tower.num_prefix_tokens,
            sequence_first=tower.sequence_first,
            patch_size=tower.patch_size,
        )

    @property
    def last_level(self) -> int:
        """The deepest tapped level."""
        return self.levels[-1]


@dataclass
class _Kept:
    """A tensor as tapped, and its version then: hosts may write into it later."""

    tensor: Tensor
    version: int | None

    @classmethod
    def of(cls, x: Tensor) -> _Kept:
        """Keeps a reference; a copy where writes could not be noticed (inference mode)."""
        if torch.compiler.is_compiling():
            return cls(x.detach(), None)
        if x.is_inference():
            return cls(x.clone(), None)
        return cls(x.detach(), x._version)

    def written_since(self) -> bool:
        """Whether the host has changed the tensor in place."""
        return self.version is not None and self.tensor._version != self.version


class TowerPass:
    """One forward of the vision tower: the wanted tokens, until they are freed.

    Attributes:
        batch: Number of views B.
        pixel_size: (H, W) of the tower's input.
        grid: Patch grid (h, w).
    """

    def __init__(
        self, wanted: Wanted, batch: int, pixel_size: tuple[int, int], grid: tuple[int, int]
    ) -> None:
        self.batch = batch
        self.pixel_size = pixel_size
        self.grid = grid
        self._wanted = wanted
        self._levels: dict[int, _Kept] = {}
        self._context: _Kept | None = None
        self._pixels: _Kept | None = None
        self._problem: str | None = None

    @property
    def features(self) -> TowerFeatures:
        """The tokens of this pass, without autograd history.

        Raises:
            NoDepthError: A tap did not fire, the tokens are not laid out as expected, the host
                wrote into them, or they have been freed.
        """
        self._check()
        with torch.inference_mode(False):
            levels = {level: _usable(kept) for level, kept in self._levels.items()}
            context = None if self._context is None else _usable(self._context)
            if self._wanted.context == "mean":
                context = levels[self._wanted.last_level].mean(dim=1)
            read = {level: x_BND for level, x_BND in levels.items() if level in self._wanted.levels}
            return TowerFeatures(read, context, self.grid, self._seen_pixels())

    def _seen_pixels(self) -> Tensor | None:
        """The pixels that whole patches cover; the rest, right and below, no token has seen."""
        if self._pixels is None:
            return None
        rows, columns = (g * p for g, p in zip(self.grid, self._wanted.patch_size, strict=True))
        return _usable(self._pixels)[..., :rows, :columns]

    @property
    def complete(self) -> bool:
        """Whether everything wanted has arrived."""
        context_due = self._wanted.context in ("pooled", "cls") and self._context is None
        return not context_due and all(level in self._levels for level in self._wanted.levels)

    def free(self, why: str) -> None:
        """Drops the tokens; asking for them later says ``why``."""
        self._levels, self._context, self._pixels = {}, None, None
        self._problem = why

    def take_pixels(self, pixels_B3HW: Tensor) -> None:
        """Keeps the tower's input."""
        self._pixels = _Kept.of(pixels_B3HW)

    def take_level(self, level: int, x: Tensor) -> None:
        """Keeps a block's raw output, (B, T, D) or (T, B, D), without its prefix tokens."""
        if self._problem is not None or level in self._levels:
            return  # gradient checkpointing runs blocks again, in the backward of any pass
        wanted = self._wanted
        x_BTD = x.transpose(0, 1) if wanted.sequence_first else x
        expected = (
            self.batch,
            wanted.num_prefix_tokens + self.grid[0] * self.grid[1],
            wanted.width,
        )
        if tuple(x_BTD.shape) != expected:
            self._problem = (
                f"level {level} came as {tuple(x_BTD.shape)}, expected {expected} = (views, "
                f"{wanted.num_prefix_tokens} prefix tokens + {self.grid[0]} x {self.grid[1]} "
                "patches, width): this tower drops, merges or packs tokens in a way that its "
                "adapter does not know"
            )
            return
        self._levels[level] = _Kept.of(x_BTD[:, wanted.num_prefix_tokens :])
        if wanted.context == "cls" and level == wanted.last_level:
            self._context = _Kept.of(x_BTD[:, 0])

    def take_pooled(self, pooled_BD: Tensor) -> None:
        """Keeps the tower's pooled vector."""
        if self._problem is not None:
            return
        if tuple(pooled_BD.shape) != (self.batch, self._wanted.width):
            self._problem = (
                f"the pooled vector came as {tuple(pooled_BD.shape)}, expected "
                f"{(self.batch, self._wanted.width)}"
            )
            return
        # A copy, as it may be a view that would keep all of the tower's normed tokens.
        self._context = _Kept.of(pooled_BD.clone())

    def _check(self) -> None:
        if self._problem is not None:
            raise NoDepthError(self._problem)
        if not self.complete:
            missing = [f"level {k}" for k in self._wanted.levels if k not in self._levels]
            if self._context is None and self._wanted.context in ("pooled", "cls"):
                missing.append(f"the {self._wanted.context} context")
            raise NoDepthError(
                f"taps that did not fire: {', '.join(missing)}. It may be that {NOT_FIRED}"
            )
        kept = [*self._levels.values(), self._context, self._pixels]
        if any(one is not None and one.written_since() for one in kept):
            raise NoDepthError(
                "tokens or pixels were written into in place after they were tapped; run the host "
                "under torch.inference_mode(), where taps keep copies"
            )


def _usable(kept: _Kept) -> Tensor:
    """The tensor as one that autograd may save: inference tensors are cloned out."""
    return kept.tensor.clone() if kept.tensor.is_inference() else kept.tensor

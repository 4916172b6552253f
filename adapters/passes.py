"""What a tower pass leaves behind, and which thread and task may see it.

Axes: B views, N tokens (T: prefix tokens included), D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
NO_PASS = (
    "no tower pass in this thread (and asyncio task) since attach: run the host on a picture "
    "first. It may be that the prompt had no picture, that the pass ran in another thread, or "
    f"that {NOT_FIRED}"
)
STALE = (
    "the host has started another forward since its last tower pass, without its vision tower (a "
    "prompt without a picture); that pass's depth is not this prompt's. Read .depth before, or "
    "collect passes with plugin.capture()"
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
            pixels = None if self._pixels is None else _usable(self._pixels)
            return TowerFeatures(read, context, self.grid, pixels)

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


@dataclass
class Slot:
    """What one thread (and asyncio task) sees.

    Attributes:
        last: The last tower pass, or None.
        why_none: Why ``last`` is None.
        running: The pass that taps write into now.
        captures: Lists that collect every pass.
        leave: Whether to leave the tower once the pass is complete.
        in_host: How many forwards of the host, one inside the other, run now.
        prompt: Token ids of the host's last forward, where it has such.
        claimed: Whether a forward of the host has taken ``last`` for its own. Some hosts run
            their tower inside that forward, others (``generate`` of late) just before it.
    """

    last: TowerPass | None = None
    why_none: str = NO_PASS
    running: TowerPass | None = None
    captures: list[list[TowerPass]] = field(default_factory=list)
    leave: bool = False
    in_host: int = 0
    prompt: Tensor | None = None
    claimed: bool = False


class _PrivateRuns(threading.local):
    """Recorders that run a tower for a caller of their own now, in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[Recorder, list[TowerPass]]] = []


_PRIVATE = _PrivateRuns()


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.slot = Slot()
        self.of_task: weakref.WeakKeyDictionary[asyncio.Task[object], Slot] = (
            weakref.WeakKeyDictionary()
        )


MakePass = Callable[[Wanted, int, tuple[int, int], tuple[int, int]], TowerPass]


class Recorder:
    """Routes what the taps see to the thread and task that runs the tower.

    Attributes:
        wanted: What is tapped.
        attached: Whether passes that nobody asked for become ``last``.
    """

    def __init__(self, wanted: Wanted, make_pass: MakePass) -> None:
        self.wanted = wanted
        self.attached = False
        self._make_pass = make_pass
        self._per_thread = _PerThread()

    @property
    def slot(self) -> Slot:
        """The caller's own: of this thread and, in eager, of this asyncio task."""
        per_thread = self._per_thread
        if torch.compiler.is_compiling():
            return per_thread.slot
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            task = None
        return per_thread.slot if task is None else per_thread.of_task.setdefault(task, Slot())

    def begin(self, batch: int, pixel_size: tuple[int, int], grid: tuple[int, int]) -> None:
        """A tower pass starts; the one before it is dropped."""
        slot = self.slot
        slot.running = None
        if _PRIVATE.stack:
            recorder, seen = _PRIVATE.stack[-1]
            if recorder is self:
                slot.running = self._make_pass(self.wanted, batch, pixel_size, grid)
                seen.append(slot.running)
        elif self.attached:
            slot.running = self._make_pass(self.wanted, batch, pixel_size, grid)
            slot.last, slot.claimed = slot.running, slot.in_host > 0
            for capture in slot.captures:
                capture.append(slot.running)

    @contextmanager
    def privately(self) -> Iterator[list[TowerPass]]:
        """Tower passes inside, in this thread, go to the list given and to no other recorder."""
        seen: list[TowerPass] = []
        _PRIVATE.stack.append((self, seen))
        try:
            yield seen
        finally:
            _PRIVATE.stack.pop()
            self.slot.running = None

    def host_starts(self) -> bool:
        """A forward of the host starts. Returns whether it is the outermost, and not private."""
        if _PRIVATE.stack:
            return False
        slot = self.slot
        slot.in_host += 1
        return slot.in_host == 1

    def host_claims(self, *, afresh: bool) -> None:
        """That forward takes the last tower pass for its own.

        Unless one before it has done so and it runs ``afresh`` (on a new input, not on a next
        token): then that pass is of another input, and is dropped.
        """
        slot = self.slot
        if afresh and slot.claimed and slot.last is not None:
            slot.last, slot.running, slot.why_none = None, None, STALE
        slot.claimed = True

    def host_ends(self) -> None:
        """That forward is over, or was ended by an error."""
        if not _PRIVATE.stack:
            slot = self.slot
            slot.in_host = max(slot.in_host - 1, 0)

    def forget(self) -> None:
        """Drops the last pass of every thread."""
        self._per_thread = _PerThread()

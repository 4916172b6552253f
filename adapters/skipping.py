"""Skip: stands in for a block's forward while a pass that leaves it out runs in some thread."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_MISSING = object()


@dataclass
class Trimmed:
    """A pass that leaves blocks out.

    Attributes:
        call: The frame that the tower's forward runs in.
        blocks: What is left out.
        in_tuple: Whether blocks return their output in a tuple of one; None before one has run,
            and where they return something else: then nothing is left out.
    """

    call: FrameType
    blocks: tuple[nn.Module, ...]
    in_tuple: bool | None = None

    def runs(self, frame: FrameType | None) -> bool:
        """Whether the tower's forward is among the callers of a frame: an interrupt may end it."""
        while frame is not None:
            if frame is self.call:
                return True
            frame = frame.f_back
        return False

    def see(self, output: Any) -> None:
        """Takes note of what the first block returns."""
        self.in_tuple = None
        if isinstance(output, Tensor):
            self.in_tuple = False
        elif isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], Tensor):
            self.in_tuple = True


class Skip:
    """A block's forward, for all threads; counts the passes that leave the block out."""

    def __init__(self, block: nn.Module, passes: dict[int, Trimmed]) -> None:
        self._block = block
        self._passes = passes
        self._users = 0
        self._before: Any = _MISSING

    def enter(self) -> None:
        """One more pass leaves the block out."""
        if self._users == 0:
            self._before = vars(self._block).get("forward", _MISSING)
            vars(self._block)["forward"] = self
        self._users += 1

    def leave(self) -> None:
        """One fewer; after the last the block is as it was."""
        self._users -= 1
        if self._users == 0:
            if self._before is _MISSING:
                del vars(self._block)["forward"]
            else:
                vars(self._block)["forward"] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's input, where this thread's pass leaves it out; else its own output."""
        x = args[0] if args else kwargs.get("hidden_states")
        if isinstance(x, Tensor) and (now := self._pass_that_leaves_out()) is not None:
            # A copy: hidden state k, which is this tensor, stays what it is whatever follows.
            return (x.clone(),) if now.in_tuple else x.clone()
        before = self._before
        run = type(self._block).forward.__get__(self._block) if before is _MISSING else before
        return run(*args, **kwargs)

    def _pass_that_leaves_out(self) -> Trimmed | None:
        if torch.compiler.is_compiling():
            return None
        now = self._passes.get(threading.get_ident())
        if now is None or now.in_tuple is None or not any(b is self._block for b in now.blocks):
            return None
        return now if now.runs(sys._getframe(1)) else None

    def __reduce__(self) -> tuple[Any, ...]:
        # A host that another thread copies meanwhile has its own block's forward.
        return getattr, (self._block, "forward")

"""The hook on a block whose output is wanted, and the end of a tower's forward that it brings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.hooks import Hook
from clipdepth_plugin.adapters.pass_recorder import PassRecorder


class LeaveTower(BaseException):
    """Ends a tower's forward once all that is wanted has been seen; no error, so no Exception."""


class LevelHook(Hook):
    """Keeps a block's raw output in the pass that runs.

    The one hook that runs many times in a pass: it calls nothing of ours on its way.
    """

    def __init__(self, owner: object, recorder: PassRecorder, level: int) -> None:
        self.owner = owner
        self._recorder = recorder
        self._level = level

    def __call__(self, *args: Any) -> None:
        """Arguments as torch gives them, the block's output last."""
        forward, x = self._recorder.thread.forward, args[-1]
        running = forward.running
        if running is None:
            return
        if x.__class__ is not Tensor and not isinstance(x, Tensor):
            x = x[0] if isinstance(x, list | tuple) else None
            if not isinstance(x, Tensor):
                return
        if x.is_cuda and running.may_be_captured and torch._C._cuda_isCurrentStreamCapturing():
            self._recorder.drop_captured()
            return
        # Gradient checkpointing runs blocks again, in the backward of any pass.
        if running.problem is None and self._level not in running.levels:
            width = running.wanted.tower.width
            if x.shape[-1:] != (width,):
                shape = tuple(x.shape)
                running.problem = (
                    f"level {self._level} came as {shape}, expected a width of {width}"
                )
            elif running.compiles:
                running.levels[self._level] = x.detach(), None
            else:  # as ``keep``, which would be a call more
                try:
                    running.levels[self._level] = x.detach() if x.requires_grad else x, x._version
                except RuntimeError:
                    running.levels[self._level] = x.clone(), None
        if forward.leave and running.complete:
            raise LeaveTower


@contextlib.contextmanager
def leaving_early(
    recorder: PassRecorder, *, allowed: bool, with_pixels: bool = False
) -> Iterator[None]:
    """Ends the tower's forward inside when the pass is complete, where that is ``allowed``.

    ``with_pixels``: or as soon as the pass has its pixels and what says how they are laid out.
    """
    forward = recorder.thread.forward
    forward.leave, forward.leave_with_pixels = allowed, allowed and with_pixels
    try:
        yield
    except LeaveTower:
        pass
    finally:
        forward.leave = forward.leave_with_pixels = False

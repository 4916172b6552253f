"""Leaves out blocks that a host runs and throws away, where that cannot be noticed.

``trim_plan`` says which blocks, ``trim_proof`` when nobody can tell. In every pass where that is
not proven all blocks run.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from clipdepth_plugin.adapters.passes import Wanted
from clipdepth_plugin.adapters.skipping import Skip, Trimmed
from clipdepth_plugin.adapters.taps import Hook, is_noop
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.trim_plan import TrimPlan, deepest, modules_between, plan_trim
from clipdepth_plugin.adapters.trim_proof import (
    NotProvenError,
    check_circumstances,
    check_unwatched,
    layers_that_count,
)

logger = logging.getLogger(__name__)


class Trim:
    """Leaves blocks out of the passes of one tower, as far as a plan goes.

    Attributes:
        plan: What can be left out.
        passes: Passes that went without these blocks.
        refused: Why all blocks ran in the last pass of which some could have been left out; None
            where they were.
    """

    def __init__(
        self,
        tower: Tower,
        around: Sequence[nn.Module],
        plan: TrimPlan,
        owner: object,
    ) -> None:
        self.plan = plan
        self.passes = 0
        self.refused: str | None = None
        self._tower = tower
        self._owner = owner
        self._most = tower.depth - len(plan.blocks)
        self._handles: list[RemovableHandle] = []
        self._end_handle: RemovableHandle | None = None
        # The garbage collector may call `remove` wherever this thread holds it.
        self._lock = threading.RLock()
        self._passes: dict[int, Trimmed] = {}  # by thread
        self._skips: dict[nn.Module, Skip] = {}
        # From what the host's model calls down to the tower, which it is in recent releases.
        self._around = tuple(around)

    @classmethod
    def of(cls, host: nn.Module, tower: Tower, owner: object, wanted: Wanted) -> Trim:
        """Plans it, and says in the log what can be left out, or why nothing."""
        last_level = wanted.levels[-1]
        plan = plan_trim(host, tower, last_level, pooled=wanted.context == "pooled")
        blocks = ", ".join(plan.blocks) or "nothing"
        logger.info("trim: %s can be left out: %s", blocks, plan.why)
        return cls(tower, modules_between(host, tower), plan, owner)

    def install(self) -> None:
        """Watches the tower, where there is anything to leave out."""
        if not self.plan.blocks or self._handles:
            return
        # Of the outermost: recent releases record hidden states by hooks, which see what stands in
        # for a block; older ones by standing in themselves, which must come after us.
        outermost = self._around[0]
        start, end = Hook(self._owner, self._start), Hook(self._owner, self._end)
        see = Hook(self._owner, self._see)
        with self._lock:
            if self._end_handle is None:
                # Before another plug-in's that began earlier: what was put on last comes off first.
                self._end_handle = outermost.register_forward_hook(
                    end, prepend=True, always_call=True
                )
            self._handles = [
                outermost.register_forward_pre_hook(start, with_kwargs=True),
                self._tower.blocks[0].register_forward_hook(see),
            ]

    def remove(self) -> None:
        """All blocks run again: from the next pass on, where one runs now."""
        with self._lock:
            while self._handles:
                self._handles.pop().remove()
            frames = sys._current_frames()
            for thread, one in list(self._passes.items()):
                if not one.runs(frames.get(thread)):
                    self._finish(thread)
            del frames  # this frame is among them
            self._remove_end()

    def _start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            self.refused = "it is compiled"
            return
        thread = threading.get_ident()
        with self._lock:
            self._finish(thread)  # what an interrupt left behind
        try:
            skipped = self._provably_unneeded(module, kwargs)
        except NotProvenError as why:
            self._say(str(why))
            return
        # Two frames up, in torch: what runs the hooks and then the forward.
        if self._leave_out(thread, Trimmed(sys._getframe(2), skipped)):
            self.refused = None
        else:
            self._say("it was detached as the pass began")

    def _leave_out(self, thread: int, one: Trimmed) -> bool:
        """Whether its blocks are left out: not where the hooks came off since the pass began."""
        with self._lock:
            # First of all: a `remove` from here on finds a pass that runs, and keeps `_end` for it.
            self._passes[thread] = one
            if not self._handles:
                del self._passes[thread]
                self._remove_end()
                return False
            self.passes += 1
            for block in one.blocks:
                self._skips.setdefault(block, Skip(block, self._passes)).enter()
            return True

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            one = self._passes.get(threading.get_ident())
            if one is not None:
                one.see(output)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            with self._lock:
                self._finish(threading.get_ident())
                self._remove_end()

    def _finish(self, thread: int) -> None:
        """Puts back what a thread's pass left out, if it did."""
        one = self._passes.pop(thread, None)
        for block in () if one is None else one.blocks:
            self._skips[block].leave()

    def _remove_end(self) -> None:
        """The last hook goes when we are off and the last pass is over."""
        if not self._handles and not self._passes and self._end_handle is not None:
            handle, self._end_handle = self._end_handle, None
            handle.remove()

    def _provably_unneeded(
        self, module: nn.Module, kwargs: dict[str, Any]
    ) -> tuple[nn.Module, ...]:
        """The blocks that this pass can do without; raises NotProvenError where there are none."""
        if module is not self._around[0]:
            raise NotProvenError("a replica of the tower runs")
        if kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False):
            raise NotProvenError("attention maps are asked for")
        check_circumstances(module)
        needed = deepest(layers_that_count(sys._getframe(2)), self._tower.depth)
        keep = self._tower.depth if needed is None else max(needed, self._most)
        skipped = self._tower.blocks[keep:]
        if not skipped:
            raise NotProvenError("the host reads the last hidden state")
        tower = self._tower
        kept = [tower.patch_embed, *tower.blocks[:keep]]
        before = {id(inner) for one in kept for inner in one.modules()}
        after = (inner for inner in self._around[0].modules() if id(inner) not in before)
        check_unwatched(after, self._harmless)
        return skipped

    def _harmless(self, hook: Any, module: nn.Module) -> bool:
        if isinstance(hook, Hook):  # another plug-in's, further in, wants what these blocks give
            return hook.owner is self._owner or module in self._around
        return is_noop(hook) or str(getattr(hook, "__module__", "")).startswith("transformers.")

    def _say(self, why: str) -> None:
        if why != self.refused:
            logger.info("trim: all blocks run: %s", why)
        self.refused = why

"""Which thread, asyncio task and forward of the host a tower pass belongs to."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clipdepth_plugin.adapters.hooks import in_cuda_graph
from clipdepth_plugin.adapters.layout_rules import TowerCall
from clipdepth_plugin.adapters.named_pictures import NamesSeen
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.slots import Forward, Slot
from clipdepth_plugin.adapters.wanted import Wanted

STALE = (
    "the host has started another forward since its last tower pass, without its vision tower (a "
    "prompt without a picture); that pass's depth is not this prompt's. Read .depth before, or "
    "collect passes with plugin.capture()"
)

NOT_BEGUN = (
    "the tower's last forward gave nothing at its patch embedding, and the pass before is not its: "
    "an error ended it, it was given no picture, or it was compiled, graphed or replayed before "
    "attach"
)

UNDER_WAY = (
    "the tower's last pass was under way in this thread when the plug-in was attached, so not all "
    "of it was seen: run the host again"
)

CAPTURED = (
    "the tower's last forward was recorded as a CUDA graph, and its replays run no hook: keep the "
    "tower out of the graph"
)


class _PrivateRuns(threading.local):
    """Recorders whose tower a caller runs alone now, in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[PassRecorder, list[TowerPass]]] = []


_PRIVATE = _PrivateRuns()


class _PerThread(threading.local):
    """Attributes: the tower's forward, and what is seen outside of asyncio's tasks and in each."""

    def __init__(self) -> None:
        self.forward = Forward()
        self.slot = Slot()
        self.of_task: weakref.WeakKeyDictionary[asyncio.Task[object], Slot] = (
            weakref.WeakKeyDictionary()
        )


MakePass = Callable[[Wanted, TowerCall, bool], TowerPass]
"""The last: whether it is a host's own pass."""


class PassRecorder:
    """Routes what the taps see to the thread and task that runs the tower."""

    def __init__(self, wanted: Wanted, make_pass: MakePass) -> None:
        self.wanted = wanted
        self.attached = False
        self._make_pass = make_pass
        self._under_way: set[int] = set()
        self.thread = _PerThread()

    @property
    def slot(self) -> Slot:
        """The caller's own: of this thread and, in eager, of this asyncio task."""
        thread = self.thread
        if torch.compiler.is_dynamo_compiling():
            return thread.slot
        loop = asyncio._get_running_loop()  # None where none runs in this thread
        task = None if loop is None else asyncio.current_task(loop)
        return thread.slot if task is None else thread.of_task.setdefault(task, Slot())

    def tower_starts(self) -> None:
        """A forward of the tower starts: whatever becomes of it, the pass before is over."""
        self.thread.forward.running = None
        if self._under_way:
            self._was_under_way()
        if self.attached and not _PRIVATE.stack:
            slot = self.slot
            slot.last, slot.why_none = None, NOT_BEGUN

    def pass_over(self, threads: set[int]) -> None:
        """Drops the passes that run in these threads now, whose beginning was not seen."""
        self._under_way = threads

    def _was_under_way(self) -> bool:
        """Whether this thread's pass was; the next one is not."""
        if torch.compiler.is_dynamo_compiling():
            return False
        thread = threading.get_ident()
        was = thread in self._under_way
        self._under_way.discard(thread)
        return was

    def begin(self, call: TowerCall, patches: Tensor) -> None:
        """A tower pass starts, by its first ``patches``; the one before it is dropped."""
        forward = self.thread.forward
        forward.running = None
        if _PRIVATE.stack:
            recorder, seen = _PRIVATE.stack[-1]
            if recorder is self:
                forward.running = self._make_pass(self.wanted, call, False)
                seen.append(forward.running)
        elif self.attached and in_cuda_graph(patches):
            self.drop_captured()
        elif self.attached and self._under_way and self._was_under_way():
            slot = self.slot
            slot.last, slot.why_none = None, UNDER_WAY
        elif self.attached:
            slot = self.slot
            slot.last = forward.running = self._make_pass(self.wanted, call, True)
            slot.claimed = slot.in_host != ()
            slot.made_inside = slot.in_wrapper
            slot.passes_inside += slot.claimed
            slot.names.take(slot.last)
            for capture in slot.captures:
                capture.append(slot.last)

    def drop_captured(self) -> None:
        """What runs now is only recorded, and not computed before a replay: there is no pass."""
        if not _PRIVATE.stack:
            self.thread.forward.running = None
            slot = self.slot
            slot.last, slot.why_none = None, CAPTURED

    @contextmanager
    def privately(self) -> Iterator[list[TowerPass]]:
        """Tower passes inside, in this thread, go to the list given and to no other recorder."""
        seen: list[TowerPass] = []
        _PRIVATE.stack.append((self, seen))
        try:
            yield seen
        finally:
            _PRIVATE.stack.pop()
            self.thread.forward.running = None

    def host_starts(self, number: int) -> bool:
        """A forward of the host starts. Returns whether it is the outermost, and not private.

        Modules are numbered inwards: those further in are over, even where an interrupt ended them.
        """
        if _PRIVATE.stack:
            return False
        slot = self.slot
        slot.in_host = (*_outside(slot.in_host, number), number)
        return len(slot.in_host) == 1

    def host_claims(self, *, afresh: bool) -> None:
        """That forward takes the last tower pass for its own.

        A pass that one before it has taken is dropped where it runs ``afresh``, on a new input.
        Inside one run of a policy there is none: its action head runs on what its tower saw.
        """
        slot = self.slot
        if afresh and slot.claimed and slot.last not in (None, slot.names.newest):
            slot.last, slot.why_none = None, STALE
            self.thread.forward.running = None
        slot.claimed = True

    def names_seen(self) -> NamesSeen | None:
        """Where policies that run, and pipelines that prepare, are noted; None: not now."""
        return self.slot.names if self.attached and not _PRIVATE.stack else None

    def host_ends(self, number: int) -> None:
        """That forward is over, or was ended by an error."""
        if not _PRIVATE.stack:
            slot = self.slot
            slot.in_host = _outside(slot.in_host, number)

    def wrapper_starts(self) -> None:
        """A module starts that holds the tower and takes no prompt."""
        if not _PRIVATE.stack:
            slot = self.slot
            slot.in_wrapper, slot.before = True, slot.last

    def wrapper_ends(self) -> None:
        """It is over; where its tower did not run, the last pass may be of another input."""
        if not _PRIVATE.stack:
            slot = self.slot
            if slot.in_host == () and slot.last is not None and slot.last is slot.before:
                slot.claimed = slot.claimed or slot.made_inside
                self.host_claims(afresh=True)
            slot.in_wrapper, slot.before = False, None

    def forget(self) -> None:
        """Drops the last pass of every thread."""
        self.thread = _PerThread()


def runs_privately() -> bool:
    """Whether a caller runs a tower alone now, in this thread."""
    return bool(_PRIVATE.stack)


def _outside(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(one for one in numbers if one < number)

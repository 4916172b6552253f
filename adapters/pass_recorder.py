"""Which thread, asyncio task and forward of the host a tower pass belongs to."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.hooks import in_cuda_graph
from clipdepth_plugin.adapters.layouts import TowerCall
from clipdepth_plugin.adapters.named_pictures import NamesSeen
from clipdepth_plugin.adapters.passes import NOT_FIRED, TowerPass
from clipdepth_plugin.adapters.prompts import Conversation
from clipdepth_plugin.adapters.wanted import Wanted

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


@dataclass
class Slot:
    """What one thread (and asyncio task) sees.

    Attributes:
        last: The last tower pass; where there is none, ``why_none``.
        captures: Lists that collect every pass.
        in_host: Numbers of the modules around the tower whose forwards run now, outermost first.
        prompt: Token ids of the host's last forward, where it has such.
        conversation: Which caches do not hold the last picture.
        passes_inside: Passes that have begun inside a forward of the host.
        claimed: Whether a forward of the host has taken ``last`` for its own. Some hosts run
            their tower inside that forward, others (``generate`` of late) just before it.
        in_wrapper: Whether a module runs that holds the tower and takes no prompt; ``before`` is
            ``last`` when it began, ``made_inside``: whether ``last`` was made in one.
        names: Which batches of pictures by name a policy was run on.
    """

    last: TowerPass | None = None
    why_none: str = NO_PASS
    captures: list[list[TowerPass]] = field(default_factory=list)
    in_host: tuple[int, ...] = ()
    prompt: Tensor | None = None
    conversation: Conversation = field(default_factory=Conversation)
    passes_inside: int = 0
    claimed: bool = False
    in_wrapper: bool = False
    before: TowerPass | None = None
    made_inside: bool = False
    names: NamesSeen = field(default_factory=NamesSeen)


@dataclass
class Forward:
    """The tower's forward that runs in one thread: no other task can run before it ends.

    ``arguments`` (what the layout rule reads) and ``picture`` (the pictures' shape before padding)
    are the next pass's; ``leave``: whether to leave the tower once ``running``, the pass, is
    complete; ``leave_with_pixels``: as soon as it has its pixels.
    """

    running: TowerPass | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    picture: tuple[int, ...] | None = None
    leave: bool = False
    leave_with_pixels: bool = False


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
"""The last is ``TowerPass.hosts_own``."""


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

    def begin(self, call: TowerCall) -> None:
        """A tower pass starts; the one before it is dropped."""
        forward = self.thread.forward
        forward.running = None
        if _PRIVATE.stack:
            recorder, seen = _PRIVATE.stack[-1]
            if recorder is self:
                forward.running = self._make_pass(self.wanted, call, False)
                seen.append(forward.running)
        elif self.attached and in_cuda_graph():
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
        """
        slot = self.slot
        if afresh and slot.claimed and slot.last is not None:
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

"""CUDA graphs, one for each kind of call and shape of its inputs.

A graph reads and writes where it did when it was recorded: inputs are copied into buffers of its
own, and its outputs are copied out, as the next replay overwrites them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Runs before recording, in which kernels are compiled and loaded."""


@dataclass(frozen=True)
class Recording:
    """A recorded call: what it reads and writes, and a replay of it."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], object]


Call = Callable[[list[Tensor]], list[Tensor]]
"""What is recorded: a function of tensors alone."""

Record = Callable[[Callable[[], list[Tensor]], list[Tensor]], Recording]

MET = 256
"""Shapes that are remembered, whether they have a recording or not."""

PAUSE = 64
"""Calls between two recordings once old ones have to go: shapes that take turns would evict each
other at every call."""

_RECORDING = threading.Lock()
"""CUDA takes one recording at a time in a process."""


def record_cuda(call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Recording:
    """Records a call that reads ``inputs`` as a CUDA graph, on their device."""
    with _RECORDING, torch.cuda.device(inputs[0].device), torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the GPU (and to allocate) meanwhile.
        # torch.cuda.graph's default stream belongs to the first device that recorded.
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = call()
        finally:
            torch.cuda.set_stream(before)  # torch leaves its own on where recording fails
    return Recording(inputs, outputs, graph.replay)


class GraphCache:
    """Runs calls from recordings, made when a shape is met again; old ones are dropped.

    Safe to call from several threads and streams: replays of one cache wait for each other. What
    can't be recorded runs directly, and a warning says why.
    """

    def __init__(self, limit: int, record: Record = record_cuda) -> None:
        """``limit``: recordings kept; 0: none is made. Tests give a ``record`` of their own."""
        self._limit = limit
        self._record = record
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._met: OrderedDict[Hashable, bool] = OrderedDict()  # False: can't be recorded
        self._calls = 0  # since the last recording
        self._lock = threading.Lock()
        self._order = _StreamOrder()

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, kind: Hashable, tensors: list[Tensor], call: Call) -> list[Tensor]:
        """What ``call`` gives of ``tensors``, all on one device; the outputs are the caller's.

        From a recording where one exists or is worth it, else directly. ``kind`` names the
        function that ``call`` is; shapes, dtypes and device are added to it.
        """
        applies = self.applies(tensors)
        return self.run_recorded(kind, tensors, call) if applies else _direct(tensors, call)

    def applies(self, tensors: list[Tensor]) -> bool:
        """Whether a call of these can be run from a recording."""
        if torch.compiler.is_compiling() or self._limit == 0:
            return False
        for x in tensors:
            if not x.is_cuda or x.shape[0] == 0:
                return False
        return not torch.cuda.is_current_stream_capturing()

    def run_recorded(self, kind: Hashable, tensors: list[Tensor], call: Call) -> list[Tensor]:
        """As ``run``, of tensors that it ``applies`` to."""
        key = (kind, *[(x.shape, x.dtype, x.device) for x in tensors])
        with self._lock:
            recording = self._recordings.get(key)
            self._calls += 1
            if recording is None:
                recording = self._made(key, tensors, call) if self._is_worth_it(key) else None
            else:
                self._order.begin(tensors[0])
                self._recordings.move_to_end(key)
                # One launch where all are of one dtype and of the buffers' strides.
                torch._foreach_copy_(recording.inputs, tensors)
            if recording is not None:
                recording.replay()
                outputs = [x.clone() for x in recording.outputs]
                self._order.end()
                return outputs
        return _direct(tensors, call)

    def _is_worth_it(self, key: Hashable) -> bool:
        """Whether a shape is to have a recording, which takes as long as many calls.

        Not at the first call: a host that keeps the pictures' sizes may never repeat a shape. A
        full cache records once in ``PAUSE`` calls.
        """
        again = self._met.get(key)
        self._met[key] = again is not False
        self._met.move_to_end(key)
        if len(self._met) > MET:
            self._met.popitem(last=False)
        full = len(self._recordings) >= self._limit
        if not again or (full and self._calls < PAUSE):
            return False
        self._calls = 0
        return True

    def _made(self, key: Hashable, tensors: list[Tensor], call: Call) -> Recording | None:
        """A new recording in the place of the one used longest ago; None where it fails."""
        self._order.begin(tensors[0])
        try:
            recording = self._make(tensors, call)
        except Exception as problem:  # noqa: BLE001 (drivers and decoders raise anything)
            self._met[key] = False
            logger.warning(
                "no CUDA graph could be recorded, so such calls run step by step: %s: %s",
                type(problem).__name__,
                problem,
            )
            return None
        finally:
            self._order.end()
        if len(self._recordings) >= self._limit:
            self._order.synchronize()
            self._recordings.popitem(last=False)
        self._recordings[key] = recording
        return recording

    def _make(self, tensors: list[Tensor], call: Call) -> Recording:
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            own = [x.detach().clone() for x in tensors]  # dense, their axes in the same order
            return self._record(lambda: call(own), own)

    def clear(self) -> None:
        """Drops all recordings, and their memory, after the last replay has finished."""
        with self._lock:
            self._order.synchronize()
            self._recordings.clear()
            self._met.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the head, and a pickled one, begins without recordings.
        return GraphCache, (self._limit, self._record)


class _StreamOrder:
    """Has work that shares buffers run in its order, whatever CUDA stream each part is on."""

    def __init__(self) -> None:
        self._where: tuple[torch.device, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None  # of ``_stream``'s device

    def begin(self, x: Tensor) -> None:
        """What comes next, on the device of ``x``, waits for what was before."""
        if not x.is_cuda:
            return
        # ``torch.cuda.current_stream`` takes 15 calls.
        where = x.device, torch._C._cuda_getCurrentRawStream(x.device.index)
        if where != self._where:  # else the stream itself keeps the order
            stream = torch.cuda.current_stream(x.device)
            if self._done is not None:
                stream.wait_event(self._done)
            self._where, self._stream, self._done = where, stream, torch.cuda.Event()

    def end(self) -> None:
        """Marks the end of what was begun."""
        if self._done is not None:
            self._done.record(self._stream)

    def synchronize(self) -> None:
        """Waits until all of it has run."""
        if self._done is not None:
            self._done.synchronize()


def _direct(tensors: list[Tensor], call: Call) -> list[Tensor]:
    device = tensors[0].device
    if device.type != "cuda" or torch.compiler.is_compiling():
        return call(tensors)
    with torch.cuda.device(device):  # kernels are launched on the current one
        return call(tensors)

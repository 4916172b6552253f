"""CUDA graphs, one for each kind of call and shape of its inputs.

A graph reads and writes where it did when it was recorded: inputs are copied into buffers of its
own, and its outputs are copied out, as the next replay overwrites them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = call()
    return Recording(inputs, outputs, graph.replay)


class GraphCache:
    """Runs calls from recordings, made when a shape is met again; old ones are dropped.

    Safe to call from several threads and streams: replays of one cache wait for each other.
    """

    def __init__(self, limit: int, record: Record = record_cuda) -> None:
        """``limit``: recordings kept; 0: none is made. Tests give a ``record`` of their own."""
        self._limit = limit
        self._record = record
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._met: OrderedDict[Hashable, None] = OrderedDict()
        self._calls = 0  # since the last recording
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, kind: Hashable, tensors: list[Tensor], call: Call) -> list[Tensor]:
        """What ``call`` gives of ``tensors``, all on one device; the outputs are the caller's.

        From a recording where one exists or is worth it, else directly. ``kind`` names the
        function that ``call`` is; shapes, dtypes and device are added to it.
        """
        if self.applies(tensors):
            key = (kind, *[(x.shape, x.dtype, x.device) for x in tensors])
            with self._lock:
                recording = self._recordings.get(key)
                self._calls += 1
                if recording is not None or self._is_worth_it(key):
                    return self._replayed(key, recording, tensors, call)
        device = tensors[0].device
        if device.type != "cuda" or torch.compiler.is_compiling():
            return call(tensors)
        with torch.cuda.device(device):  # kernels are launched on the current one
            return call(tensors)

    def applies(self, tensors: list[Tensor]) -> bool:
        """Whether a call of these can be run from a recording."""
        if torch.compiler.is_compiling() or self._limit == 0:
            return False
        for x in tensors:
            if not x.is_cuda or x.shape[0] == 0:
                return False
        return not torch.cuda.is_current_stream_capturing()

    def _replayed(
        self, key: Hashable, recording: Recording | None, tensors: list[Tensor], call: Call
    ) -> list[Tensor]:
        stream = torch.cuda.current_stream(tensors[0].device) if tensors[0].is_cuda else None
        if stream is not None and self._done is not None:
            stream.wait_event(self._done)
        if recording is None:
            recording = self._recordings[key] = self._make(tensors, call)
            if len(self._recordings) > self._limit:
                self._recordings.popitem(last=False)
        else:
            self._recordings.move_to_end(key)
            # One launch where all are of one dtype and of the buffers' strides.
            torch._foreach_copy_(recording.inputs, tensors)
        recording.replay()
        outputs = [x.clone() for x in recording.outputs]
        if stream is not None:
            if self._done is None:
                self._done = torch.cuda.Event()
            self._done.record(stream)
        return outputs

    def _is_worth_it(self, key: Hashable) -> bool:
        """Whether a shape is to have a recording, which takes as long as many calls.

        Not at the first call: a host that keeps the pictures' sizes may never repeat a shape. A
        full cache records once in ``PAUSE`` calls.
        """
        again = key in self._met
        self._met[key] = None
        self._met.move_to_end(key)
        if len(self._met) > MET:
            self._met.popitem(last=False)
        full = len(self._recordings) >= self._limit
        if not again or (full and self._calls < PAUSE):
            return False
        self._calls = 0
        return True

    def clear(self) -> None:
        """Drops all recordings after the last replay has finished."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()
            self._done = None
            self._recordings.clear()

    def _make(self, tensors: list[Tensor], call: Call) -> Recording:
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            own = [x.detach().clone() for x in tensors]  # dense, their axes in the same order
            return self._record(lambda: call(own), own)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the head, and a pickled one, begins without recordings.
        return GraphCache, (self._limit, self._record)

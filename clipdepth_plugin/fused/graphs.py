"""CUDA graphs of a decoder, one for each shape of its inputs.

A graph reads and writes where it did when it was recorded: inputs are copied into buffers of its
own, and its outputs are copied out, as the next replay overwrites them.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.features import TowerFeatures

WARM_UPS = 3
"""Runs before recording, in which kernels are compiled and loaded."""


@dataclass(frozen=True)
class Inputs:
    """What is decoded: features in the head's dtype, and the size of the maps."""

    features: TowerFeatures
    size: Size | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        features = self.features
        given = (*features.levels.values(), features.context, features.pixels)
        return [x for x in given if x is not None]

    @property
    def kind(self) -> tuple[Any, ...]:
        """The key of a recording."""
        features = self.features
        there = (features.context is None, features.pixels is None)
        shapes = [(tuple(x.shape), x.dtype, x.device) for x in self.tensors]
        return tuple(features.levels), features.grid, self.size, there, *shapes

    def of(self, tensors: list[Tensor]) -> Inputs:
        """The same of other tensors, in the order of ``tensors``."""
        rest, features = iter(tensors), self.features
        levels = {level: next(rest) for level in features.levels}
        context = None if features.context is None else next(rest)
        pixels = None if features.pixels is None else next(rest)
        return Inputs(TowerFeatures(levels, context, features.grid, pixels), self.size)


Decode = Callable[[Inputs], list[Tensor]]


@dataclass(frozen=True)
class Recording:
    """A recorded call: what it reads and writes, and a replay of it."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], object]


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
    """Runs a decoder from recordings, made when a shape is met again; old ones are dropped.

    Safe to call from several threads and streams: replays of one cache wait for each other.
    """

    def __init__(self, decode: Decode, limit: int, record: Record = record_cuda) -> None:
        """``limit``: recordings kept; 0: none is made. Tests give a ``record`` of their own."""
        self._decode = decode
        self._limit = limit
        self._record = record
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._met: OrderedDict[Any, None] = OrderedDict()
        self._calls = 0  # since the last recording
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, inputs: Inputs) -> list[Tensor]:
        """Runs from a recording where one exists or is worth it, else directly; outputs are new."""
        if self.applies(inputs) and self._is_worth_it(inputs.kind):
            return self(inputs)
        device = inputs.tensors[0].device
        if device.type != "cuda" or torch.compiler.is_compiling():
            return self._decode(inputs)
        with torch.cuda.device(device):  # kernels are launched on the current one
            return self._decode(inputs)

    def applies(self, inputs: Inputs) -> bool:
        """Whether this call can be run from a recording."""
        if torch.compiler.is_compiling() or self._limit == 0 or inputs.features.batch == 0:
            return False
        on_cuda = all(x.device.type == "cuda" for x in inputs.tensors)
        return on_cuda and not torch.cuda.is_current_stream_capturing()

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The decoder's outputs from a recording, made where there is none."""
        kind, tensors = inputs.kind, inputs.tensors
        with self._lock:
            if self._done is not None:
                torch.cuda.current_stream(tensors[0].device).wait_event(self._done)
            recording = self._recordings.get(kind)
            if recording is None:
                recording = self._recordings[kind] = self._make(inputs)
                if len(self._recordings) > self._limit:
                    self._recordings.popitem(last=False)
            else:
                self._recordings.move_to_end(kind)
                torch._foreach_copy_(recording.inputs, tensors)
            recording.replay()
            outputs = [x.clone() for x in recording.outputs]
            if outputs[0].is_cuda:
                self._done = torch.cuda.current_stream(outputs[0].device).record_event()
            return outputs

    def _is_worth_it(self, kind: Any) -> bool:
        """Whether a shape has a recording, or is to have one, which takes as long as many calls.

        Not at the first call: a host that keeps the pictures' sizes may never repeat a shape. A
        full cache records once in ``PAUSE`` calls.
        """
        with self._lock:
            again = kind in self._met
            self._met[kind] = None
            self._met.move_to_end(kind)
            if len(self._met) > MET:
                self._met.popitem(last=False)
            self._calls += 1
            if kind in self._recordings:
                return True
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
            self._recordings.clear()

    def _make(self, inputs: Inputs) -> Recording:
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            own = [_own(x) for x in inputs.tensors]
            kept = inputs.of(own)
            return self._record(lambda: self._decode(kept), own)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the head, and a pickled one, begins without recordings.
        return GraphCache, (self._decode, self._limit, self._record)


def _own(x: Tensor) -> Tensor:
    """A buffer like a tensor, packed: row-major tokens, channels-last maps."""
    maps = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if maps else torch.contiguous_format
    return x.detach().clone(memory_format=order)

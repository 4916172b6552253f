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

from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.readout import DepthEstimate

Size = tuple[int, int]
Decode = Callable[[TowerFeatures, Size | None], DepthEstimate]
WARM_UPS = 3
"""Runs before recording: kernels are compiled and loaded, which a graph must not see."""


@dataclass(frozen=True)
class Recording:
    """A recorded call.

    Attributes:
        inputs: What it reads.
        outputs: What it writes.
        replay: Runs it again.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], object]


Record = Callable[[Callable[[], list[Tensor]], list[Tensor]], Recording]


def record_cuda(call: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Recording:
    """Records a call that reads ``inputs`` as a CUDA graph, on their device."""
    with torch.cuda.device(inputs[0].device), torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the GPU (and to allocate) meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = call()
    return Recording(inputs, outputs, graph.replay)


class GraphCache:
    """Runs a decoder from recordings; the shapes used longest ago are dropped.

    Safe to call from several threads and streams: replays of one cache wait for each other.
    """

    def __init__(self, decode: Decode, limit: int, record: Record = record_cuda) -> None:
        """Makes an empty cache.

        Args:
            decode: What is recorded.
            limit: Recordings kept; 0: none is made.
            record: Makes a recording; tests give one of their own.
        """
        self._decode = decode
        self._limit = limit
        self._record = record
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._recordings)

    def applies(self, features: TowerFeatures) -> bool:
        """Whether this call is to be run from a recording."""
        if torch.compiler.is_compiling() or self._limit == 0 or features.batch == 0:
            return False
        on_cuda = all(x.device.type == "cuda" for x in _tensors(features))
        return on_cuda and not torch.cuda.is_current_stream_capturing()

    def __call__(self, features: TowerFeatures, size: Size | None) -> DepthEstimate:
        """The decoder's maps, the caller's to keep."""
        tensors = _tensors(features)
        shapes = [(tuple(x.shape), x.dtype, x.device) for x in tensors]
        key = (tuple(features.levels), features.context is None, features.grid, size, *shapes)
        with self._lock:
            if self._done is not None:
                torch.cuda.current_stream(tensors[0].device).wait_event(self._done)
            recording = self._recordings.get(key)
            if recording is None:
                recording = self._make(features, size)
                self._recordings[key] = recording
                if len(self._recordings) > self._limit:
                    self._recordings.popitem(last=False)
            else:
                self._recordings.move_to_end(key)
                torch._foreach_copy_(recording.inputs, tensors)
            recording.replay()
            outputs = [x.clone() for x in recording.outputs]
            if outputs[0].is_cuda:
                self._done = torch.cuda.current_stream(outputs[0].device).record_event()
            return DepthEstimate(outputs[0], outputs[1] if len(outputs) > 1 else None)

    def clear(self) -> None:
        """Drops all recordings."""
        with self._lock:
            self._recordings.clear()

    def _make(self, features: TowerFeatures, size: Size | None) -> Recording:
        tensors = _tensors(features)
        inputs = [x.detach().clone(memory_format=torch.contiguous_format) for x in tensors]
        own = iter(inputs)
        kept = TowerFeatures(
            {level: next(own) for level in features.levels},
            None if features.context is None else next(own),
            features.grid,
            None if features.pixels is None else next(own),
        )
        return self._record(lambda: _maps(self._decode(kept, size)), inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the head, and a pickled one, begins without recordings.
        return GraphCache, (self._decode, self._limit, self._record)


def _tensors(features: TowerFeatures) -> list[Tensor]:
    given = (*features.levels.values(), features.context, features.pixels)
    return [x for x in given if x is not None]


def _maps(estimate: DepthEstimate) -> list[Tensor]:
    return [x for x in (estimate.metres, estimate.log_scale) if x is not None]

"""CUDA's streams on a CPU, and who would read what too soon.

Work runs at once, as it is asked for; what a device may do is told from the waits alone. Each
stream has a vector clock: an access is safe if the accesses that it must follow happened before
it, by the order of one stream or by a wait. What was allocated on one stream and used on another
must have been told to the allocator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipdepth_plugin import DepthPlugin, attach
from clipdepth_plugin.plugin.overlap import Streams

Clock = dict[str, int]


class FakeStream:
    """A stream by its name; ``clock`` holds, for every stream, how far this one has seen it."""

    def __init__(self, name: str, device: FakeDevice) -> None:
        self.name = name
        self.clock: Clock = {name: 0}
        self._device = device

    def wait_event(self, event: Clock) -> None:
        self._device.log.append(f"{self.name} waits")
        for name, tick in event.items():
            self.clock[name] = max(self.clock.get(name, 0), tick)

    def wait_stream(self, other: FakeStream) -> None:
        self.wait_event(other.record_event())

    def record_event(self) -> Clock:
        return dict(self.clock)


class FakeDevice(TorchDispatchMode):
    """Notes every access of every op inside, in the thread that entered it.

    Attributes:
        log: What was asked for, in order: ``host waits``, ``side op``, and the test's own.
        races: Accesses that nothing makes wait.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.host = FakeStream("host", self)
        self.log: list[str] = []
        self.races: list[str] = []
        self._here = threading.local()
        self._alive: dict[int, Any] = {}  # storages, so that no two of them share an address
        self._made: dict[int, str] = {}
        self._written: dict[int, tuple[str, int]] = {}
        self._read: dict[int, Clock] = {}
        self._used: dict[int, set[str]] = {}
        self._told: dict[int, set[str]] = {}

    @property
    def current(self) -> FakeStream:
        stream: FakeStream = getattr(self._here, "stream", self.host)
        return stream

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self._here.stream = self.current, stream
        try:
            yield
        finally:
            self._here.stream = before

    def tell(self, tensors: Iterable[Tensor], stream: FakeStream) -> None:
        for x in tensors:
            self._told.setdefault(self._key(x), set()).add(stream.name)

    @property
    def untold(self) -> int:
        """Tensors used on another stream than their own without the allocator's knowing."""
        return sum(
            bool(used - {self._made.get(key, "host")} - self._told.get(key, set()))
            for key, used in self._used.items()
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(out)
        names = [argument.name for argument in func._schema.arguments]
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        written = [
            x
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for x in _tensors(values.get(argument.name))
        ]
        keys = {self._key(x) for x in given}
        new = [x for x in made if self._key(x) not in keys]
        if made and not new and not written:
            return out  # a view
        stream = self.current
        stream.clock[stream.name] += 1
        self.log.append(f"{stream.name} op")
        for x in given:
            self._access(self._key(x), stream, str(func), writes=False)
        for x in (*new, *written):
            self._made.setdefault(self._key(x), stream.name)
            self._access(self._key(x), stream, str(func), writes=True)
        return out

    def _access(self, key: int, stream: FakeStream, op: str, *, writes: bool) -> None:
        before = dict([self._written[key]] if key in self._written else [])
        if writes:
            for name, tick in self._read.get(key, {}).items():
                before[name] = max(before.get(name, 0), tick)
        for name, tick in before.items():
            if stream.clock.get(name, 0) < tick:
                self.races.append(f"{op} on {stream.name} does not wait for {name}")
        now = stream.clock[stream.name]
        self._used.setdefault(key, set()).add(stream.name)
        if writes:
            self._written[key] = (stream.name, now)
        else:
            self._read.setdefault(key, {})[stream.name] = now

    def _key(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        key: int = storage._cdata
        self._alive.setdefault(key, storage)
        return key


class FakeStreams(Streams):
    """``Streams`` on a fake device; ``leave_out`` names waits that it forgets, to see them missed.

    Attributes:
        serving: Whether the device has streams.
    """

    def __init__(self, device: FakeDevice, leave_out: str = "") -> None:
        super().__init__()
        self.device = device
        self.serving = True
        self._leave_out = leave_out

    def serves(self, device: torch.device) -> bool:
        return self.serving

    def current(self, device: torch.device) -> FakeStream:
        current = self.device.current
        if self._leave_out == "the reader's wait" and current is self.device.host:
            deaf = _Deaf(current.name, self.device)
            deaf.clock = current.clock
            return deaf
        return current

    def side(self, device: torch.device) -> FakeStream:
        streams: dict[str, FakeStream] = vars(self._own).setdefault("fakes", {})
        kind = _Deaf if self._leave_out == "the side stream's wait" else FakeStream
        name = f"side of {threading.current_thread().name}" if _aside() else "side"
        return streams.setdefault("side", kind(name, self.device))

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        with self.device.on(stream):
            yield

    def use(self, tensors: Iterable[Tensor], stream: FakeStream) -> None:
        if self._leave_out != "the allocator":
            self.device.tell(tensors, stream)


class _Deaf(FakeStream):
    """Waits for nothing."""

    def wait_event(self, event: Clock) -> None:
        pass


def _aside() -> bool:
    return threading.current_thread() is not threading.main_thread()


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


@contextmanager
def overlapped(
    host: nn.Module, head: Any, device: FakeDevice, leave_out: str = "", **options: Any
) -> Iterator[DepthPlugin]:
    """A plug-in on fake streams; the log says when blocks start, too."""
    with attach(host, head, overlap=True, **options) as plugin, torch.no_grad():
        assert plugin.overlap is not None
        plugin.overlap.streams = FakeStreams(device, leave_out)
        handles = [
            block.register_forward_pre_hook(
                lambda *_, number=number: device.log.append(f"block {number}")
            )
            for number, block in enumerate(plugin.tower.blocks, start=1)
        ]
        try:
            yield plugin
        finally:
            for handle in handles:
                handle.remove()


def overlap_of(plugin: DepthPlugin) -> Any:
    """Its overlap, which it must have."""
    assert plugin.overlap is not None
    return plugin.overlap

"""A head on a CUDA stream of its own, beside a host that goes on meanwhile.

What a head can do of its early levels alone (``DepthHead.early``) starts as soon as those blocks
are done, the rest as soon as the tower is. Each start waits, on the device, for what the host had
asked for until then, so that the tokens are there; the host waits for nothing; who reads depth
waits for the head's end. Tensors that cross streams are told to the allocator.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.plugin.estimating import estimate
from clipdepth_plugin.precision import without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead

logger = logging.getLogger(__name__)

COMPILED = (
    "its tokens came out of compiled code, which shows them at its end only: the head runs when "
    "depth is read"
)


class Streams:
    """What is asked of CUDA: a side stream for each thread and device, waits and lifetimes."""

    def __init__(self) -> None:
        self._own = threading.local()

    def serves(self, device: torch.device) -> bool:
        """Whether it has streams."""
        return device.type == "cuda"

    def current(self, device: torch.device) -> Any:
        """The caller's stream."""
        return torch.cuda.current_stream(device)

    def side(self, device: torch.device) -> Any:
        """This thread's other stream: threads that share one would wait for each other."""
        streams: dict[torch.device, Any] = vars(self._own).setdefault("streams", {})
        if device not in streams:
            streams[device] = torch.cuda.Stream(device)
        return streams[device]

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Makes a stream the caller's."""
        with torch.cuda.stream(stream):
            yield

    def use(self, tensors: Iterable[Tensor], stream: Any) -> None:
        """Their memory is not given to others before what ``stream`` was asked for is done."""
        for x in tensors:
            x.record_stream(stream)


class Overlap:
    """Runs a plug-in's head beside its host, where that can be.

    Attributes:
        passes: Passes whose head ran beside the host.
        why_not: Why the last pass that did without did so, or None.
        head: The head.
        streams: Of CUDA; tests give their own.
    """

    def __init__(self, head: DepthHead | FusedHead, streams: Streams | None = None) -> None:
        self.head = head
        self.streams = Streams() if streams is None else streams
        self.passes = 0
        self.why_not: str | None = None
        self._told: set[str] = set()
        self._weights_of: set[tuple[Any, int]] = set()
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """The head's."""
        return next(self.head.parameters()).device

    def obstacle(self, seen: TowerPass) -> str | None:
        """Why the head can't run beside the host now; None: it can."""
        device = self.device
        elsewhere = sorted({str(x.device) for x in seen.kept if x.device != device})
        serves, layout = self.streams.serves(device), ", ".join(seen.hangs_on)
        reasons = {
            f"streams run beside each other on CUDA, and the head is on {device}": not serves,
            f"the head is on {device}, tokens on {', '.join(elsewhere)}": bool(elsewhere),
            "the head is in training mode": self.head.training,
            "the head's weights were made in inference mode, where writes can't be noticed": any(
                x.is_inference() for x in (*self.head.parameters(), *self.head.buffers())
            ),
            "the host runs with gradients, not under torch.no_grad()": torch.is_grad_enabled(),
            "tokens came out of compiled code, where writes can't be noticed": seen.unwatched,
            f"how its tokens lie has to be read from {layout}, which would make the host wait for "
            "its device": bool(layout),
        }
        return next((why for why, holds in reasons.items() if holds), None)

    def decline(self, why: str, level: int = logging.INFO, kind: str | None = None) -> None:
        """A pass does without; said once for each reason, or for each ``kind`` of them."""
        with self._lock:
            self.why_not = why
            new = (kind or why) not in self._told
            self._told.add(kind or why)
        if new:
            logger.log(level, "no overlap, depth is computed when it is read: %s", why)

    @contextmanager
    def beside(self, reads: Iterable[Tensor]) -> Iterator[None]:
        """What is asked for inside runs after all that the host asked for, and beside the rest."""
        device, streams = self.device, self.streams
        side = streams.side(device)
        streams.use(reads, side)
        self._use_weights(side)
        side.wait_stream(streams.current(device))
        with (
            streams.on(side),
            torch.inference_mode(False),
            torch.no_grad(),
            without_autocast(device),
        ):
            yield

    def count(self) -> None:
        """A pass's head runs beside its host."""
        with self._lock:
            self.passes += 1

    def _use_weights(self, side: Any) -> None:
        """Once for each stream and place of the weights: that lasts as long as they do."""
        kind = side, next(self.head.parameters()).data_ptr()
        if kind not in self._weights_of:
            self.streams.use((*self.head.parameters(), *self.head.buffers()), side)
            self._weights_of.add(kind)


class _Weights:
    """A head's weights as they were: what is written into them later is not ordered with it."""

    def __init__(self, head: DepthHead | FusedHead) -> None:
        self._versions = [(x, x._version) for x in (*head.parameters(), *head.buffers())]

    def check(self) -> None:
        """Raises NoDepthError where one has been written into in place."""
        if any(x._version != version for x, version in self._versions):
            raise NoDepthError(
                "the head's weights were changed while it ran beside the host: read depth before "
                "you write into them, or attach without overlap"
            )


class HeadBeside:
    """The head of one pass, run in parts as the tokens arrive."""

    def __init__(self, overlap: Overlap) -> None:
        self._overlap = overlap
        self._early: list[list[Tensor]] | None = None
        self._estimates: list[DepthEstimate] | None = None
        self._done: Any = None
        self._weights: _Weights | None = None
        self._settled = False

    def go_on(self, seen: TowerPass) -> None:
        """Starts what the tokens that have arrived suffice for; never the host's trouble."""
        if self._settled or not (seen.complete or self._early_due(seen)):
            return
        try:
            why = self._overlap.obstacle(seen)
            if why is not None:
                self._settle(why)
                return
            self._weights = self._weights or _Weights(self._overlap.head)
            with self._overlap.beside(seen.kept):
                if seen.complete:
                    self._finish(seen)
                else:
                    batches = seen.batches_of(self._overlap.head.early_levels)
                    self._early = [self._overlap.head.early(one) for one in batches]
        except Exception as error:  # noqa: BLE001 (whoever reads depth meets it, not the host)
            kind = type(error).__name__  # texts may differ each time: numbers, addresses
            self._settle(f"{kind}: {error}", logging.WARNING, kind)

    def join(self) -> list[DepthEstimate] | None:
        """The maps, once the reader's stream waits for them; None: the head has not run.

        Raises:
            NoDepthError: The head's weights were written into before the maps were first read.
        """
        if not self._settled:  # no tap in sight of Python completed the pass
            self._settle(COMPILED)
        if self._estimates is None:
            return None
        streams = self._overlap.streams
        current = streams.current(self._estimates[0].metres.device)  # the head may have moved
        current.wait_event(self._done)
        for metres, log_scale, _ in self._estimates:
            streams.use([metres] if log_scale is None else [metres, log_scale], current)
        if self._weights is not None:
            self._weights.check()
            self._weights = None  # whoever writes into them now does so after the head
        return self._estimates

    def _early_due(self, seen: TowerPass) -> bool:
        head = self._overlap.head
        hooked = head._forward_pre_hooks or head._forward_hooks  # they may change what is read
        if self._early is not None or hooked:
            return False
        return bool(head.early_levels) and seen.has(head.early_levels)

    def _finish(self, seen: TowerPass) -> None:
        overlap, batches = self._overlap, seen.batches
        early: Sequence[list[Tensor] | None] = self._early or [None] * len(batches)
        pairs = zip(batches, early, strict=True)
        estimates = [estimate(overlap.head, one, maps) for one, maps in pairs]
        self._done = overlap.streams.current(overlap.device).record_event()
        self._estimates, self._early, self._settled = estimates, None, True
        overlap.count()

    def _settle(self, why: str, level: int = logging.INFO, kind: str | None = None) -> None:
        self._settled, self._early = True, None
        self._overlap.decline(why, level, kind)

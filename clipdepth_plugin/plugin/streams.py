"""Streams: the passes of one camera in order, their depth held steady.

Axes: B views, N patch tokens, S channels that are compared, H W a map's size.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Literal

import torch

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.arguments import check_type
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.features import Views
from clipdepth_plugin.maps.stabilising import Stabiliser
from clipdepth_plugin.plugin.pass_maps import PassMaps
from clipdepth_plugin.plugin.reader import Reader
from clipdepth_plugin.plugin.reading import DepthPass, DepthReading, last_pass
from clipdepth_plugin.precision import without_autocast

View = int | Literal["all"]
"""The number of a view in its pass, from 0; "all": all of them, such as the tiles of a picture."""


class DepthStream(DepthReading):
    """One camera's depth, pass by pass; ``DepthPlugin.stream`` makes it.

    What is read of it (``depth``, ``predict`` ...) is of its view in the last tower pass, as of the
    plug-in, with the depth stabilised: each patch is found again in the frame that was read
    before by its tokens, and errors of its depth are averaged. A pass is taken once, when it is
    first read, as the next frame; reading it again gives the same. Passes that are never read are
    frames that were dropped. After a cut it starts anew. Confidence is the frame's own.

    It keeps one frame's tokens and depth, however long it runs. Threads may read it: each takes its
    own last pass, one after the other.
    """

    def __init__(self, name: str, recorder: PassRecorder) -> None:
        """``recorder``: of the plug-in."""
        self.name = name
        self.view: View = 0
        self._recorder = recorder
        self._lock = threading.Lock()
        self._stabilisers: list[Stabiliser] = []
        self._taken: weakref.WeakKeyDictionary[PassMaps, _Taken] = weakref.WeakKeyDictionary()

    def of(self, tower_pass: DepthPass) -> DepthPass:
        """The same of a pass of ``DepthPlugin.capture``: hosts that call their tower once a camera.

        Args:
            tower_pass: One that shows this camera, the next frame unless it was read before.

        Raises:
            HostError: It is no pass, or it has no such view.
        """
        check_type(tower_pass, DepthPass, "tower_pass")
        strange = tower_pass.wanted is not self._recorder.wanted
        if strange or isinstance(tower_pass, _StreamPass):
            raise HostError(
                "tower_pass is of another plug-in, or of a stream already: give one of those that "
                "this plug-in's capture() collects"
            )
        return _StreamPass(tower_pass, self)

    def reset(self) -> None:
        """Starts anew: the next pass is a first frame (of an episode, say)."""
        with self._lock:
            self._stabilisers = []

    def _pass(self) -> PassMaps:
        return _StreamPass(last_pass(self._recorder), self)

    def take(self, source: PassMaps, chosen: range) -> list[DepthEstimate]:
        """The maps of the views ``chosen`` of a pass, one each: stabilised when first asked for."""
        with self._lock:
            taken = self._taken.get(source)
            if taken is None or taken.chosen != chosen:
                taken = _Taken(chosen, self._stabilised(source, chosen))
                self._taken[source] = taken
            return taken.natives

    def _stabilised(self, source: PassMaps, chosen: range) -> list[DepthEstimate]:
        natives, signatures = source.natives_and_signatures()
        if len(self._stabilisers) != len(chosen):
            self._stabilisers = [Stabiliser() for _ in chosen]
        numbered = [
            (run, index, views.grid)
            for run, views in enumerate(source.views)
            for index in range(views.count)
        ]
        found = []
        for stabilise, view in zip(self._stabilisers, chosen, strict=True):
            run, index, grid = numbered[view]
            native, one = natives[run], slice(index, index + 1)
            log_scale = None if native.log_scale is None else native.log_scale[one]
            with torch.no_grad(), without_autocast(native.depth.device):
                depth = stabilise(native.depth[one], log_scale, signatures[run][index], grid)
            found.append(DepthEstimate(depth, log_scale))
        return found


class _Taken:
    """The maps that a pass got; ``chosen``: of which views."""

    def __init__(self, chosen: range, natives: list[DepthEstimate]) -> None:
        self.chosen = chosen
        self.natives = natives


class _StreamPass(DepthPass):
    """A pass as a stream shows it: of its views, with stabilised maps."""

    def __init__(self, source: PassMaps, stream: DepthStream) -> None:
        super().__init__(source.reader, source.wanted, source._call, False)
        self.problem = "a stream keeps no tokens: read those of the plug-in's own pass"
        self._source, self._stream = source, stream
        count = sum(views.count for views in source.views)
        view = stream.view
        if view == "all":
            self._chosen = range(count)
        elif view < count:
            self._chosen = range(view, view + 1)
        else:
            raise HostError(
                f"stream {stream.name!r} reads view {view}, and this pass has {count} (from 0): "
                f"plugin.stream({stream.name!r}, view=...) says which one its camera is"
            )

    @property
    def views(self) -> tuple[Views, ...]:
        whole = self._source.views
        if len(self._chosen) == sum(views.count for views in whole):
            return whole
        each = [replace(views, count=1) for views in whole for _ in range(views.count)]
        return tuple(each[index] for index in self._chosen)

    def _read(self) -> tuple[list[DepthEstimate], None]:
        natives = self._stream.take(self._source, self._chosen)
        if len(natives) != len(self.views):
            rest = iter(natives)
            natives = [_joined([next(rest) for _ in range(views.count)]) for views in self.views]
        return natives, None


def _joined(natives: list[DepthEstimate]) -> DepthEstimate:
    """The maps (1, 1, H, W) of views of one size as (B, 1, H, W)."""
    scales = [one.log_scale for one in natives if one.log_scale is not None]
    depth = torch.cat([one.depth for one in natives])
    return DepthEstimate(depth, torch.cat(scales) if scales else None)


class Streams:
    """The streams of a plug-in, by name."""

    def __init__(self, recorder: PassRecorder, reader: Reader, wanted: Wanted) -> None:
        self._recorder, self._reader, self._wanted = recorder, reader, wanted
        self._by_name: dict[str, DepthStream] = {}

    def get(self, name: str, view: View | None) -> DepthStream:
        """See ``DepthPlugin.stream``."""
        check_type(name, str, "the stream's name")
        _check_view(view)
        # Levels in the middle of a tower find patches again best: see results/streams.md.
        middle = self._wanted.tower.depth / 2
        self._reader.stream_level = min(self._wanted.levels, key=lambda k: abs(k - middle))
        stream = self._by_name.setdefault(name, DepthStream(name, self._recorder))
        if view is not None:
            stream.view = view
        return stream


def _check_view(view: object) -> None:
    number = isinstance(view, int) and not isinstance(view, bool) and view >= 0
    if not (view is None or view == "all" or number):
        raise HostError(
            f"view is {quoted(view)}: expected the view's number in its pass, from 0, or 'all'"
        )

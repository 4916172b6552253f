"""attach() and DepthPlugin: depth beside a host's own outputs."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from torch import Tensor, nn

from clipdepth_plugin.adapters.connectors import Connector, find_connector
from clipdepth_plugin.adapters.named_pictures import is_pipeline
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.shown_again import ShownAgain
from clipdepth_plugin.adapters.taps import Taps, owners
from clipdepth_plugin.adapters.threads import changing, threads_inside
from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.adapters.trim import Trim, plan_trim
from clipdepth_plugin.adapters.wanted import wanted_by
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.plugin.checks import check_fit
from clipdepth_plugin.plugin.framing import host_preprocessing, warn_of_other_views
from clipdepth_plugin.plugin.named_cameras import NO_NAMES, depth_of_camera
from clipdepth_plugin.plugin.reader import Reader
from clipdepth_plugin.plugin.reading import DepthPass, DepthReading, last_pass
from clipdepth_plugin.plugin.streams import DepthStream, Streams, View
from clipdepth_plugin.plugin.tower_calls import TowerCalls

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in


def attach(
    host: nn.Module,
    head: DepthHead | FusedHead,
    *,
    tower: str | None = None,
    processor: Any = None,
    trim: bool = False,
    other_tower: bool = False,
) -> DepthPlugin:
    """Taps a host's vision tower; depth can be read after each of the host's own forwards.

    Everything is checked before the host is touched, and nothing of it changes but the hooks
    that ``detach`` takes off again. The plug-in must be kept: when it is collected, it detaches.

    Args:
        host: A tower, CLIP, VLM or policy.
        head: A head that fits its tower.
        tower: Module path of the tower, where the host has several.
        processor: The host's Hugging Face image processor (or a ``Preprocessing``), for
            ``predict(original_sizes=...)``; only needed where the host does not carry it.
            Whoever prepares pictures otherwise says how in a ``Preprocessing``. Or LeRobot's
            pipeline that prepares a policy's batches, for ``depth_of``: of GR00T and EO1.
        other_tower: Take a tower with other weights than the head was trained on (fine-tuned
            since, say): logged, and not refused.
        trim: Leave out the tower's last blocks where, by the host's own config, nobody reads them
            (LLaVA reads hidden state -2). The host's outputs stay bit for bit the same;
            ``plugin.trim`` says which blocks, or why none, and what changes for who reads the
            tower itself.

    Returns:
        The plug-in, attached.

    Raises:
        TowerNotFoundError: No tower, or several and no choice.
        HeadMismatchError: No head, or its width, levels, context or recorded weights do not fit,
            or it is attached to that tower already.
        HostError: The host is no torch module, the processor can't be read, or the host says that
            it prepares its pictures otherwise.
    """
    plugin = DepthPlugin(
        host, head, tower=tower, processor=processor, trim=trim, other_tower=other_tower
    )
    plugin.attach()
    return plugin


class DepthPlugin(DepthReading, TowerCalls):
    """Depth from the tower of a host: taps and a head, never the host itself.

    A context manager (leaving it detaches) and a torch module whose parameters are the head's.

    Attributes:
        head: The head.
        tower: What was found in the host.
        preprocessing: How the host makes views of its pictures; None where that is not known.
        trim: What is left out of the tower; None where that was not asked for.
    """

    def __init__(
        self,
        host: nn.Module,
        head: DepthHead | FusedHead,
        *,
        tower: str | None = None,
        processor: Any = None,
        trim: bool = False,
        other_tower: bool = False,
    ) -> None:
        """Checks that the head fits, without touching the host. See ``attach``."""
        super().__init__()
        self.tower: Tower = choose_tower(host, tower)
        check_fit(head, self.tower, other_tower=other_tower)
        self.head = head
        self.preprocessing = host_preprocessing(host, self.tower, processor)
        wanted = wanted_by(head.config, self.tower, pixels=head.reads_pixels)
        connector = functools.cache(functools.partial(find_connector, host, self.tower))
        self._reader = Reader(head, self.preprocessing, connector)
        make_pass = functools.partial(DepthPass, self._reader)
        self._recorder = PassRecorder(wanted, make_pass)
        self._streams = Streams(self._recorder, self._reader, wanted)
        pipeline = processor if is_pipeline(processor) else None
        self._taps = Taps(host, self.tower, self._recorder, owner=head, pipeline=pipeline)
        self._shown_again = ShownAgain(self._recorder, self._taps)
        self._runner = TowerRunner(self.tower, self._taps, self._recorder)
        self._finalizer = weakref.finalize(self, self._taps.remove)
        self._compared = False
        self.trim: Trim | None = None
        if trim:
            self.trim = plan_trim(host, self.tower, wanted)
            weakref.finalize(self, self.trim.remove)

    @property
    def attached(self) -> bool:
        """Whether the host is tapped now."""
        return self._recorder.attached

    def attach(self) -> Self:
        """Puts the taps on (again, after ``detach``).

        Code of torch.compile is compiled anew: attach once, not for each call. Other threads may
        run the host meanwhile: passes that are under way go on and are not recorded. A compilation
        is waited for.

        Raises:
            HeadMismatchError: This head is on that tower already; or of two heads on a tower one
                reads what ``trim`` leaves out for the other.
        """
        with changing():
            self._attach()
        return self

    def _attach(self) -> None:
        hooked = any(owner is self.head for owner in owners(self.tower))
        if self.attached or (hooked and not self._taps.installed):
            raise HeadMismatchError(
                f"this head is attached to {self.tower.path or 'this tower'!r} already: use that "
                "plug-in, or detach it first"
            )
        self._recorder.forget()
        self._taps.install()
        if self.trim is not None:
            try:
                self.trim.install()
            except HeadMismatchError:
                self._taps.remove()
                raise
        self._recorder.pass_over(threads_inside(self.tower.module))
        self._recorder.attached = True
        if not self._compared:
            warn_of_other_views(self.head.config, self.preprocessing)
            self._compared = True
        _forget_compiled()

    def detach(self) -> None:
        """Takes the taps off; the host is as it was. The last pass's depth can still be read."""
        with changing():
            if self.attached:
                self._recorder.attached = False
                self._taps.remove()
                if self.trim is not None:
                    self.trim.remove()
                    _forget_compiled()

    @contextmanager
    def capture(self) -> Iterator[list[DepthPass]]:
        """Collects every tower pass inside, in order, in this thread (eager: and task).

        For hosts that call the tower once a camera, several prompts, video. Each pass has
        ``features``, ``depth``, ``depths`` and ``predict``, and keeps its tokens until its depth
        is read.
        """
        seen: list[TowerPass] = []
        captures = self._recorder.slot.captures
        captures.append(seen)
        try:
            yield cast("list[DepthPass]", seen)
        finally:
            captures[:] = [capture for capture in captures if capture is not seen]

    def connector(self, path: str | None = None) -> Connector:
        """What makes the host's visual tokens; ``path`` names it where the structure does not."""
        return self._reader.connector(path)

    def stream(self, name: str, view: View | None = None) -> DepthStream:
        """Depth of one camera of a video, held steady from pass to pass; made on first use.

        Make it before the first tower pass that it is to show. Streams share nothing.

        Args:
            name: The camera's: the same name is the same stream.
            view: The number of its view in the passes from now on, or "all" for all views of a
                pass, such as the tiles of one picture. None: as before, at first 0.

        Raises:
            HostError: No name, or no number.
        """
        return self._streams.get(name, view)

    def depth_of(
        self, key: str, *, intrinsics: Cameras | None = None, focal_px: Focals | None = None
    ) -> Tensor:
        """Depth of one camera of the last batch that the policy has looked at, by its own name.

        Args:
            key: The policy's name of the camera, such as ``observation.images.wrist``.
            intrinsics: As ``predict``, in pixels of the camera's picture.
            focal_px: As ``predict``.

        Returns:
            (B, 1, H, W) float32 metres (relative: as ``depth``) in the camera's own pictures, the
            policy's resize and padding undone; NaN where the batch says that a picture is none.

        Raises:
            NoDepthError: As ``depth``; the camera was not in the batch; or it is not certain which
                tower pass shows it.
            HostError: The policy has no camera of that name; its tower sees no resized, cropped and
                padded picture; or as ``predict``.
        """
        if not self._taps.names_pictures:
            raise NoDepthError(NO_NAMES)
        named = self._recorder.slot.names.last
        return depth_of_camera(self._shown_again, named, key, intrinsics, focal_px)

    def _pass(self) -> DepthPass:
        return last_pass(self._recorder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __getstate__(self) -> NoReturn:
        raise HeadMismatchError(
            "a plug-in holds hooks on its host and cannot be copied or pickled: save or copy "
            "plugin.head and attach that"
        )


def _forget_compiled() -> None:
    """Code that was compiled without the hooks, or without a block, would run on without them."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()

"""attach() and DepthPlugin: depth beside a host's own outputs.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass, Wanted
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.processors.lerobot import from_policy
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps, owners
from clipdepth_plugin.adapters.towers import Tower, choose_tower
from clipdepth_plugin.adapters.trim import Trim, plan_trim
from clipdepth_plugin.arguments import Intrinsics, Size
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.plugin.checks import check_fit, check_laid_out, check_pixels
from clipdepth_plugin.plugin.estimating import check_finite, on_heads_device
from clipdepth_plugin.plugin.reading import DepthPass

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in


def attach(
    host: nn.Module,
    head: DepthHead | FusedHead,
    *,
    tower: str | None = None,
    processor: Any = None,
    trim: bool = False,
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
            Whoever prepares pictures otherwise says how in a ``Preprocessing``.
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
    plugin = DepthPlugin(host, head, tower=tower, processor=processor, trim=trim)
    plugin.attach()
    return plugin


class DepthPlugin(nn.Module):
    """Depth from the tower of a host: taps and a head, never the host itself.

    A context manager (leaving it detaches) and a torch module (``plugin(pixels)``); its only
    parameters are the head's.

    Attributes:
        head: The head.
        tower: What was found in the host.
        trim: What is left out of it; None where that was not asked for.
    """

    def __init__(
        self,
        host: nn.Module,
        head: DepthHead | FusedHead,
        *,
        tower: str | None = None,
        processor: Any = None,
        trim: bool = False,
    ) -> None:
        """Checks that the head fits, without touching the host. See ``attach``."""
        super().__init__()
        self.tower: Tower = choose_tower(host, tower)
        check_fit(head, self.tower)
        self.head = head
        preprocessing = _preprocessing(host, self.tower, processor)
        config = head.config
        context = config.context if config.film else None
        wanted = Wanted.of(self.tower, config.levels, context, pixels=head.reads_pixels)
        make_pass = functools.partial(DepthPass, head, preprocessing)
        self._recorder = PassRecorder(wanted, make_pass)
        self._taps = Taps(host, self.tower, self._recorder, owner=head)
        self._runner = TowerRunner(self.tower, self._taps, self._recorder)
        self._finalizer = weakref.finalize(self, self._taps.remove)
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

        What torch.compile has compiled is compiled anew when it next runs, with the taps in it:
        attach once, not for each call.

        Raises:
            HeadMismatchError: This head is on that tower already; or of two heads on a tower one
                reads what ``trim`` leaves out for the other.
        """
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
        self._recorder.attached = True
        _forget_compiled()
        return self

    def detach(self) -> None:
        """Takes the taps off; the host is as it was. The last pass's depth can still be read."""
        if self.attached:
            self._recorder.attached = False
            self._taps.remove()
            if self.trim is not None:
                self.trim.remove()
                _forget_compiled()

    @property
    def depth(self) -> Tensor:
        """Depth of the last tower pass in this thread (eager: and asyncio task).

        Computed on first reading, without a graph; the tokens are freed then.

        Returns:
            (B, 1, H, W) float32 metres, one map for each view, at the tower's input size.

        Raises:
            NoDepthError: No tower pass to read, or one that did not fire every tap; says why
                that may be. Or views of several sizes: read ``depths``.
        """
        return self._last().depth

    @property
    def depths(self) -> list[Tensor]:
        """As ``depth``: a list of (1, H, W) maps, one for each view and of its own size.

        Where a host pads pictures or packs them, a map covers the picture, never its padding.
        """
        return self._last().depths

    @property
    def confidence(self) -> Tensor:
        """How sure each pixel of ``depth`` is, of the last tower pass.

        ``predict_confidence`` gives it at other sizes and in the user's own images.

        Returns:
            (B, 1, H, W) float32: the probability, 0 to 1, that the true depth is within a factor
            of 1.25 of the predicted one.

        Raises:
            NoDepthError: As ``depth``.
            HeadMismatchError: The head was made without ``config.confidence``.
        """
        return self._last().confidence

    @property
    def confidences(self) -> list[Tensor]:
        """As ``confidence``: a list of (1, H, W) maps, as ``depths``."""
        return self._last().confidences

    def predict(
        self,
        size: Size | None = None,
        *,
        original_sizes: Size | Sequence[Size] | None = None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None = None,
        focal_px: float | Sequence[float | None] | None = None,
    ) -> Tensor | list[Tensor]:
        """The maps of the last tower pass, with more said about the pictures.

        Args:
            size: (H, W) of the maps, in place of the tower's input size.
            original_sizes: (H, W) of the user's images, one for all or one for each: the host's
                resize, crop and pad are undone, and tiles are joined into one map of their image.
            intrinsics: (fx, fy, cx, cy) of the camera in pixels of the original image, or of the
                tower's input where ``original_sizes`` is not given.
            focal_px: The focal length alone, in the same pixels; None for an image whose camera is
                not known. Without any camera, a head with ``canonical_focal`` takes that.

        Returns:
            (B, 1, H, W) float32 metres; with ``original_sizes`` a list of (1, H, W), NaN where
            the tower did not see the image; a list as ``depths`` where neither size is given and
            the views are of several.

        Raises:
            NoDepthError: As ``depth``.
            HostError: The host's preprocessing is not known, or the arguments contradict.
            HeadMismatchError: A camera was given to a head that was trained without one.
        """
        return self._last().predict(
            size, original_sizes=original_sizes, intrinsics=intrinsics, focal_px=focal_px
        )

    def predict_confidence(
        self, size: Size | None = None, *, original_sizes: Size | Sequence[Size] | None = None
    ) -> Tensor | list[Tensor]:
        """How sure each pixel is of what ``predict`` gives with the same arguments.

        Where an image was cut into tiles, theirs fade into the overview's as their depths do; a
        camera makes no difference.

        Args:
            size: As ``predict``.
            original_sizes: As ``predict``.

        Returns:
            As ``predict``, of ``confidence``: float32, 0 to 1, NaN where there is no depth.

        Raises:
            NoDepthError: As ``depth``.
            HostError: As ``predict``.
            HeadMismatchError: The head was made without ``config.confidence``.
        """
        return self._last().predict_confidence(size, original_sizes=original_sizes)

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

    def forward(self, pixel_values: Tensor, **tower_kwargs: Any) -> Tensor | list[Tensor]:
        """Runs the tower alone, no further than needed, and the head.

        Gradients reach the head, never the tower. Works attached or not; ``depth`` stays.

        Args:
            pixel_values: Normalised, and laid out as the tower takes them: (B, 3, H, W), or the
                packed patches of towers that take those.
            tower_kwargs: Passed on to the tower: what else it needs (``grid_thw`` ...).

        Returns:
            (B, 1, H, W) float32 metres; for views of several sizes a list of (1, H, W).

        Raises:
            ImageError: No floats, not of the tower's shape, smaller than a patch, or not finite;
                names the images.
            NoDepthError: A tap did not fire; or the head is in evaluation mode, no gradient is
                wanted, and its depth is not finite (not looked at in compiled code).
        """
        check_pixels(pixel_values, self.tower)
        if pixel_values.ndim == 4 and len(pixel_values) == 0:  # hosts' own towers break on it
            device = next(self.head.parameters()).device
            return torch.zeros((0, 1, *pixel_values.shape[-2:]), device=device)
        run = self._run_tower(pixel_values, tower_kwargs)
        natives = [self.head(on_heads_device(one, self.head)) for one in run.batches]
        trains = self.head.training or any(native.requires_grad for native in natives)
        if not trains and not torch.compiler.is_compiling():
            check_finite(natives)
        maps = [
            run.at_pixels(native, views) for native, views in zip(natives, run.views, strict=True)
        ]
        return maps[0] if len(maps) == 1 else [map_1HW for one in maps for map_1HW in one]

    def features(
        self, pixel_values: Tensor, **tower_kwargs: Any
    ) -> TowerFeatures | list[TowerFeatures]:
        """What the head reads of the tower, as ``forward`` does it: for training and caching.

        Args:
            pixel_values: As ``forward`` takes them.
            tower_kwargs: Passed on to the tower.

        Returns:
            The features of all views; for views of several sizes a list in the views' order, each
            of it the neighbours of one size.

        Raises:
            ImageError: As ``forward``, but that pixels are not looked at for being finite.
            NoDepthError: A tap did not fire.
        """
        check_laid_out(pixel_values, self.tower)
        if pixel_values.ndim == 4 and len(pixel_values) == 0:
            return self._none_of(pixel_values, tower_kwargs)
        return self._run_tower(pixel_values, tower_kwargs).features

    def _none_of(self, pixels_B3HW: Tensor, tower_kwargs: dict[str, Any]) -> TowerFeatures:
        """Of an empty batch, on which hosts' own towers break: one picture's, without it."""
        one_B3HW = pixels_B3HW.new_zeros(1, *pixels_B3HW.shape[1:])
        (one,) = self._run_tower(one_B3HW, tower_kwargs).batches
        return TowerFeatures(
            {level: x_BND[:0] for level, x_BND in one.levels.items()},
            None if one.context is None else one.context[:0],
            one.grid,
            None if one.pixels is None else one.pixels[:0],
        )

    def _run_tower(self, pixels_B3HW: Tensor, tower_kwargs: dict[str, Any]) -> DepthPass:
        return cast("DepthPass", self._runner.run(pixels_B3HW, tower_kwargs))

    def _last(self) -> DepthPass:
        slot = self._recorder.slot
        if slot.last is None:
            raise NoDepthError(slot.why_none)
        return cast("DepthPass", slot.last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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


def _preprocessing(host: nn.Module, tower: Tower, processor: Any) -> Preprocessing | None:
    own = from_policy(host, tower.path)
    if isinstance(processor, Preprocessing):
        return processor
    if processor is None:
        return own or tower.preprocessing
    if own is not None:
        raise HostError(
            "processor: this host resizes and pads its own pictures, as its config says, not as "
            "its language model's processor would: leave processor out, or give a Preprocessing"
        )
    return from_processor(processor)

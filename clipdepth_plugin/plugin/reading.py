"""What is read of a tower pass: depth and confidence, at any size and in the user's pictures.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.decoders.readout import confidence_of
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.maps.stitching import paste, stitch
from clipdepth_plugin.plugin.pass_maps import PassMaps, as_one
from clipdepth_plugin.plugin.patch_tokens import Merge, patch_tokens
from clipdepth_plugin.precision import outside_inference

Shown = Image.Image | Sequence[Image.Image] | None


class DepthReading:
    """What is read of a tower pass: of one in ``DepthPass``, of the last one in ``DepthPlugin``."""

    def _pass(self) -> PassMaps:
        raise NotImplementedError

    @property
    def depth(self) -> Tensor:
        """Depth of the tower pass; for a plug-in the last in this thread (eager: and asyncio task).

        Computed on first reading, without a graph; the tokens are freed then.

        Returns:
            (B, 1, H, W) float32 metres, one map for each view, at the tower's input size: finite,
            but NaN for a view whose pixels are constant (a policy fills in a missing camera so),
            which a logged warning names. Of a head with ``config.metric`` False relative depth, no
            metres: larger is farther, and its inverse is known up to each view's own scale and
            shift.

        Raises:
            NoDepthError: No tower pass to read, or one that did not fire every tap; says why
                that may be. Or maps that are not finite, or views of several sizes: read
                ``depths``.
            HeadMismatchError: The head is in training mode or on another device.
        """
        one = self._pass()
        with outside_inference():
            return one.only(one.at_input(), "depths, or predict(size=...)")

    @property
    def depths(self) -> list[Tensor]:
        """As ``depth``: a list of (1, H, W) maps, one for each view and of its own size.

        Where a host pads pictures or packs them, a map covers the picture, never its padding.
        """
        one = self._pass()
        with outside_inference():
            return [map_1HW for maps_B1HW in one.at_input() for map_1HW in maps_B1HW]

    @property
    def confidence(self) -> Tensor:
        """How sure each pixel of ``depth`` is; ``predict_confidence`` gives it at other sizes.

        Returns:
            (B, 1, H, W) float32: the probability, 0 to 1, that the true depth is within a factor
            of 1.25 of the predicted one, as the head has learnt it. NaN where ``depth`` is.

        Raises:
            NoDepthError: As ``depth``.
            HeadMismatchError: As ``depth``; or the head was made without ``config.confidence``.
        """
        one = self._pass()
        with outside_inference():
            return confidence_of(one.only(one.log_scales_at_input(), "confidences"))

    @property
    def confidences(self) -> list[Tensor]:
        """As ``confidence``: a list of (1, H, W) maps, as ``depths``."""
        one = self._pass()
        with outside_inference():
            maps = one.log_scales_at_input()
            return [map_1HW for maps_B1HW in maps for map_1HW in confidence_of(maps_B1HW)]

    def predict(
        self,
        size: Size | None = None,
        *,
        original_sizes: Size | Sequence[Size] | None = None,
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
    ) -> Tensor | list[Tensor]:
        """The maps of the pass that ``depth`` reads, with more said about the pictures.

        Args:
            size: (H, W) of the maps, in place of the tower's input size.
            original_sizes: (H, W) of the user's images, one for all or one for each: the host's
                resize, crop and pad are undone, and tiles are joined into one map of their image.
            intrinsics: (fx, fy, cx, cy) of the camera in pixels of the original image, or of the
                tower's input where ``original_sizes`` is not given.
            focal_px: The focal length alone, in the same pixels. In a list of either, None is an
                image whose camera is not known. Without a camera, a head with ``canonical_focal``
                takes that.

        Returns:
            (B, 1, H, W) float32 metres (relative: as ``depth``); with ``original_sizes`` a list
            of (1, H, W), NaN where the tower did not see the image, or saw a constant one; a list
            as ``depths`` where neither size is given and the views are of several.

        Raises:
            NoDepthError: As ``depth``.
            HostError: The host's preprocessing is not known, or the arguments contradict.
            HeadMismatchError: A camera was given to a head that was trained without one; or an
                image's views would be joined of a head of relative depth.
        """
        one = self._pass()
        with outside_inference():
            place = one.place(size, original_sizes)
            images = place if isinstance(place, list) else None
            return one.placed(one.native_depths(images, intrinsics, focal_px), place, stitch)

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
        one = self._pass()
        with outside_inference():
            maps = one.placed(one.log_scales(), one.place(size, original_sizes), paste)
            if isinstance(maps, Tensor):
                return confidence_of(maps)
            return [confidence_of(log_scale_1HW) for log_scale_1HW in maps]

    def tokens(
        self,
        merge: Merge = 1,
        *,
        original_sizes: Size | Sequence[Size] | None = None,
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
    ) -> Tensor | list[Tensor]:
        """Depth at each patch of the pass that ``depth`` reads, in the host's own order.

        Args:
            merge: Patches that make one token: a side, (rows, columns), or ``"host"``, as the
                host's connector merges them (pixel shuffle, merge squares, pooling).
            original_sizes: (H, W) of the user's images, as ``predict``: cameras are then in their
                pixels, and patches that show padding alone are NaN.
            intrinsics: As ``predict``; for the points, of heads without a canonical camera, too.
            focal_px: Likewise; the camera's centre is the picture's.

        Returns:
            (B, N, 5) float32: depth in metres (the geometric mean over the patch's pixels),
            confidence (their mean), and x, y, z in metres in the camera's frame (x right, y down,
            z forward) of the point in the patch's middle. Row-major, without class and register
            tokens; a list of (N, 5) where views are of several sizes. NaN is what is not known:
            confidence of a head without it; the point where there is no camera (a head with a
            canonical one then takes that) or depth is relative; all of a constant picture.

        Raises:
            NoDepthError: As ``depth``.
            HostError: As ``predict``; a grid that is not made of such squares; or ``"host"`` where
                there is no connector, or one whose merging is not known.
            HeadMismatchError: A camera for a head of relative depth.
        """
        one = self._pass()
        with outside_inference():
            return as_one(patch_tokens(one, merge, original_sizes, intrinsics, focal_px))

    def show(self, images: Shown = None) -> Image.Image:
        """The pass's depth in colours with a scale in metres, to look at: notebooks display it.

        Args:
            images: The pictures that the host saw, one or a list, as PIL images: they are shown
                beside their depth, which is at their size then. None: the maps alone, at the
                tower's input size.

        Returns:
            A picture: ``plugin.show().save("depth.png")`` keeps it.

        Raises:
            NoDepthError: As ``depth``.
            HostError: As ``predict(original_sizes=...)``; or not as many pictures as maps.
        """
        from clipdepth_plugin.plugin.showing import shown

        return shown(self, images, metric=self._pass().metric)


class DepthPass(DepthReading, PassMaps):
    """One tower pass and its depth maps; what ``DepthPlugin.capture`` collects."""

    def _pass(self) -> PassMaps:
        return self


def last_pass(recorder: PassRecorder) -> DepthPass:
    """The last tower pass in this thread (eager: and asyncio task).

    Raises:
        NoDepthError: There is none; says why that may be.
    """
    slot = recorder.slot
    if slot.last is None:
        raise NoDepthError(slot.why_none)
    last: DepthPass = slot.last  # type: ignore[assignment]
    return last

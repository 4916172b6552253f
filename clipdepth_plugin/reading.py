"""DepthPass: the depth of one tower pass, computed when it is first read.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdepth_plugin.adapters.layouts import TowerCall, Views
from clipdepth_plugin.adapters.passes import TowerPass, Wanted
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import parse_focal, parse_intrinsics, parse_size, parse_sizes
from clipdepth_plugin.blocks import resize
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.estimating import check_finite, check_mode, estimate, on_heads_device
from clipdepth_plugin.geometry import ImageViews, Intrinsics
from clipdepth_plugin.head import NO_CONFIDENCE, DepthHead
from clipdepth_plugin.overlap import HeadBeside, Overlap
from clipdepth_plugin.precision import without_autocast
from clipdepth_plugin.readout import DepthEstimate, confidence_of
from clipdepth_plugin.stitching import stitch
from clipdepth_plugin.tiling import arrange

if TYPE_CHECKING:
    from clipdepth_plugin.fused import FusedHead  # brings triton in

logger = logging.getLogger(__name__)

_TOLD = weakref.WeakSet[nn.Module]()
"""Heads whose assumed focal length was said."""

Size = tuple[int, int]


class DepthPass(TowerPass):
    """One tower pass and its depth maps; what ``DepthPlugin.capture`` collects."""

    def __init__(
        self,
        head: DepthHead | FusedHead,
        preprocessing: Preprocessing | None,
        overlap: Overlap | None,
        wanted: Wanted,
        call: TowerCall,
        hosts_own: bool,
    ) -> None:
        super().__init__(wanted, call, hosts_own)
        self._head = head
        self._preprocessing = preprocessing
        self._beside = HeadBeside(overlap) if overlap is not None and hosts_own else None
        self._native: list[DepthEstimate] | None = None

    @property
    def depth(self) -> Tensor:
        """(B, 1, H, W) float32 metres at the tower's input size; tokens are freed by it.

        Raises:
            NoDepthError: A tap did not fire, the maps are not finite, or the views are of several
                sizes.
            HeadMismatchError: The head is in training mode or on another device.
        """
        self._say_camera()
        return self._only(self._at_pixels(self._metres()), "depths, or predict(size=...)")

    @property
    def depths(self) -> list[Tensor]:
        """One (1, H, W) float32 map in metres for each view, each of its own size."""
        self._say_camera()
        return [one_1HW for maps_B1HW in self._at_pixels(self._metres()) for one_1HW in maps_B1HW]

    @property
    def confidence(self) -> Tensor:
        """(B, 1, H, W) float32 beside ``depth``: how sure each of its pixels is.

        The probability, 0 to 1, that the true depth is within a factor of 1.25 of the predicted
        one, as the head has learnt it; a wrong camera or a world unlike its training it can't know.

        Raises:
            NoDepthError: As ``depth``.
            HeadMismatchError: As ``depth``; or the head was made without ``config.confidence``.
        """
        return self._only(self._confidences(), "confidences")

    @property
    def confidences(self) -> list[Tensor]:
        """As ``confidence``: one (1, H, W) float32 map for each view, each of its own size."""
        return [one_1HW for maps_B1HW in self._confidences() for one_1HW in maps_B1HW]

    def predict(
        self,
        size: Size | None = None,
        *,
        original_sizes: Size | Sequence[Size] | None = None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None = None,
        focal_px: float | Sequence[float | None] | None = None,
    ) -> Tensor | list[Tensor]:
        """The maps of this pass, with more said about the pictures; see ``DepthPlugin.predict``."""
        if size is not None and original_sizes is not None:
            raise HostError("size and original_sizes both say how large the maps are: give one")
        with torch.inference_mode(False):
            return self._predict(size, original_sizes, intrinsics, focal_px)

    def _predict(
        self,
        size: Size | None,
        original_sizes: Size | Sequence[Size] | None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None,
        focal_px: float | Sequence[float | None] | None,
    ) -> Tensor | list[Tensor]:
        views = None if original_sizes is None else self._views(original_sizes)
        size = None if size is None else parse_size(size, "size")
        scales = self._camera_scales(views, intrinsics, focal_px)
        natives = self._metres()
        if scales is not None:
            factors = natives[0].new_tensor(scales).split([len(native) for native in natives])
            natives = [
                native_B1HW * factors_B[:, None, None, None]
                for native_B1HW, factors_B in zip(natives, factors, strict=True)
            ]
        pairs = list(zip(natives, self.views, strict=True))
        if views is not None:
            maps = iter([one for pair in pairs for one in self._whole_views(*pair)])
            return [_whole(image, list(islice(maps, len(image)))) for image in views]
        if size is not None:
            resized = [resize(self._whole_views(*pair), size) for pair in pairs]
            return torch.cat(resized) if len(resized) > 1 else resized[0].clone()
        maps_B1HW = [self.at_pixels(*pair).clone() for pair in pairs]
        if len(maps_B1HW) == 1:
            return maps_B1HW[0]
        return [map_1HW for one_B1HW in maps_B1HW for map_1HW in one_B1HW]

    def _at_pixels(self, natives: list[Tensor]) -> list[Tensor]:
        """The maps (B, 1, H, W) of each of ``views``: the caller's to write into."""
        with torch.inference_mode(False):
            return [
                self.at_pixels(native_B1HW, views).clone()
                for native_B1HW, views in zip(natives, self.views, strict=True)
            ]

    def _only(self, maps: list[Tensor], instead: str) -> Tensor:
        if len(maps) > 1:
            sizes = ", ".join(f"{h} x {w}" for h, w in (views.pixel_size for views in self.views))
            raise NoDepthError(
                f"this pass saw views of several sizes ({sizes}), which make no one tensor: read "
                f".{instead}"
            )
        return maps[0]

    def _metres(self) -> list[Tensor]:
        return [estimate.metres for estimate in self._read()]

    def _confidences(self) -> list[Tensor]:
        if not self._head.config.confidence:
            raise HeadMismatchError(NO_CONFIDENCE)
        scales = [one.log_scale for one in self._read() if one.log_scale is not None]
        with torch.inference_mode(False):
            return [confidence_of(log_scale) for log_scale in self._at_pixels(scales)]

    def _whole_views(self, native_B1HW: Tensor, views: Views) -> Tensor:
        """Maps that cover the whole of their views, at any size."""
        whole = self._seen_size(views) == views.pixel_size
        return native_B1HW if whole else self.at_pixels(native_B1HW, views)

    def _seen_size(self, views: Views) -> Size:
        """(H, W) of the pixels that whole patches cover; the rest, right and below, is unseen."""
        patch_h, patch_w = self._wanted.patch_size
        return views.grid[0] * patch_h, views.grid[1] * patch_w

    def at_pixels(self, native_B1HW: Tensor, views: Views) -> Tensor:
        """Native maps at their views' size, cut where patches reach beyond the picture.

        Pixels beyond the last patch repeat the last.
        """
        height, width = views.pixel_size
        seen_h, seen_w = self._seen_size(views)
        seen_B1HW = resize(native_B1HW, (seen_h, seen_w))
        if (seen_h, seen_w) == views.pixel_size:
            return seen_B1HW
        beyond = (0, max(width - seen_w, 0), 0, max(height - seen_h, 0))
        return F.pad(seen_B1HW[..., :height, :width], beyond, mode="replicate")

    def _read(self) -> list[DepthEstimate]:
        """The maps (B, 1, h, w) of each of ``views`` at the head's native size, computed once."""
        # Made on first use (setdefault is atomic): torch.compile traces this object's making.
        reading = self.__dict__.setdefault("_reading", threading.Lock())
        with torch.inference_mode(False), reading:
            if self._native is None:
                self._native = self._compute()
                self.free("the tokens were freed when this pass's depth was read")
            elif self._beside is not None:
                self._beside.join()  # another thread's stream may be the reader's now
            return self._native

    def _compute(self) -> list[DepthEstimate]:
        self._check()
        check_mode(self._head)
        natives = None if self._beside is None else self._beside.join()
        if natives is None:
            with torch.no_grad():
                batches = [on_heads_device(one, self._head) for one in self.batches]
                with without_autocast(next(self._head.parameters()).device):
                    natives = [estimate(self._head, one) for one in batches]
        check_finite([one.metres for one in natives])
        return natives

    def _arrived(self) -> None:
        if self._beside is not None and not torch.compiler.is_compiling():
            self._beside.go_on(self)

    def _say_camera(self) -> None:
        """Which focal length is assumed where no camera was given; once for each head."""
        canonical = self._head.config.canonical_focal
        if canonical is not None and self._head not in _TOLD:
            _TOLD.add(self._head)
            logger.warning(
                "no camera given: focal length taken as %g px of the view; predict(focal_px=...) "
                "or intrinsics=... give the metres of another camera",
                canonical,
            )

    def _views(self, original_sizes: Size | Sequence[Size]) -> list[ImageViews]:
        """The views of each image, in the order of this pass."""
        known = self._preprocessing
        if known is None:
            raise HostError(
                "original_sizes needs the host's preprocessing, which this host does not carry: "
                "give attach(..., processor=...) its image processor"
            )
        seen = [views.pixel_size for views in self.views for _ in range(views.count)]
        sizes = parse_sizes(original_sizes, "original_sizes")
        return arrange(sizes, known, seen, self._wanted.patch_size)

    def _camera_scales(
        self,
        views: list[ImageViews] | None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None,
        focal_px: float | Sequence[float | None] | None,
    ) -> list[float] | None:
        """Factor of each view's metres by its camera: true over canonical focal length."""
        if intrinsics is None and focal_px is None:
            self._say_camera()
            return None
        if intrinsics is not None and focal_px is not None:
            raise HostError("intrinsics and focal_px both say the focal length: give one")
        canonical = self._head.config.canonical_focal
        if canonical is None:
            raise HeadMismatchError(
                "this head was trained without a canonical camera (config.canonical_focal is "
                "None): the focal length cannot change its metres"
            )
        images = self.count if views is None else len(views)
        cameras: Sequence[Intrinsics | None]
        if intrinsics is not None:
            cameras = parse_intrinsics(intrinsics, images)
        else:
            focals = parse_focal(focal_px, images)
            cameras = [None if f is None else (f, f, 0.0, 0.0) for f in focals]
        unknown = [index for index, camera in enumerate(cameras) if camera is None]
        if unknown:
            logger.info("images %s: focal length taken as %g px of the view", unknown, canonical)
        if views is not None:
            cameras = [
                camera and view.intrinsics(camera)
                for image, camera in zip(views, cameras, strict=True)
                for view in image.views
            ]
        return [1.0 if c is None else math.sqrt(c[0] * c[1]) / canonical for c in cameras]


def _whole(image: ImageViews, maps: list[Tensor]) -> Tensor:
    """One map of an image, from those of its views."""
    placed = [view.to_image(one) for view, one in zip(image.views, maps, strict=True)]
    if len(placed) == 1:
        return placed[0].clone()
    overview_1HW = None if image.overview is None else placed.pop(image.overview)
    return stitch(placed, overview_1HW)

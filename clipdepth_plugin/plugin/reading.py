"""DepthPass: the depth of one tower pass, computed when it is first read.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layouts import TowerCall
from clipdepth_plugin.adapters.passes import TowerPass, Wanted
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.arguments import Intrinsics, Size, parse_size, parse_sizes
from clipdepth_plugin.decoders.readout import NO_CONFIDENCE, DepthEstimate, confidence_of
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.features import Views
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.maps.cameras import camera_scales, say_assumed_focal
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.maps.placing import Join, at_pixels, at_size, in_images
from clipdepth_plugin.maps.stitching import paste, stitch
from clipdepth_plugin.maps.tiling import arrange
from clipdepth_plugin.plugin.estimating import (
    check_finite,
    check_mode,
    estimate,
    on_heads_device,
)
from clipdepth_plugin.precision import without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in

_Place = Size | list[ImageViews] | None
"""Where maps go: one size, the images that the views were cut from, or the tower's input."""


class DepthPass(TowerPass):
    """One tower pass and its depth maps; what ``DepthPlugin.capture`` collects."""

    def __init__(
        self,
        head: DepthHead | FusedHead,
        preprocessing: Preprocessing | None,
        wanted: Wanted,
        call: TowerCall,
        hosts_own: bool,
    ) -> None:
        super().__init__(wanted, call, hosts_own)
        self._head = head
        self._preprocessing = preprocessing
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
        with torch.inference_mode(False):
            place = self._place(size, original_sizes)
            return self._placed(self._metres_of(place, intrinsics, focal_px), place, stitch)

    def predict_confidence(
        self, size: Size | None = None, *, original_sizes: Size | Sequence[Size] | None = None
    ) -> Tensor | list[Tensor]:
        """``confidence``, pixel by pixel beside ``predict``; see ``DepthPlugin``."""
        with torch.inference_mode(False):
            maps = self._placed(self._log_scales(), self._place(size, original_sizes), paste)
            if isinstance(maps, Tensor):
                return confidence_of(maps)
            return [confidence_of(log_scale_1HW) for log_scale_1HW in maps]

    def _place(self, size: Size | None, original_sizes: Size | Sequence[Size] | None) -> _Place:
        if size is not None and original_sizes is not None:
            raise HostError("size and original_sizes both say how large the maps are: give one")
        if original_sizes is not None:
            return self._images(original_sizes)
        return None if size is None else parse_size(size, "size")

    def _metres_of(
        self,
        place: _Place,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None,
        focal_px: float | Sequence[float | None] | None,
    ) -> list[Tensor]:
        """The native maps, in the metres of the cameras."""
        if intrinsics is None and focal_px is None:
            self._say_camera()
            return self._metres()
        seen = place if isinstance(place, list) else self.count
        scales = camera_scales(self._head.config.canonical_focal, seen, intrinsics, focal_px)
        natives = self._metres()
        factors = natives[0].new_tensor(scales).split([len(native) for native in natives])
        return [
            native_B1HW * factors_B[:, None, None, None]
            for native_B1HW, factors_B in zip(natives, factors, strict=True)
        ]

    def _placed(self, natives: list[Tensor], place: _Place, join: Join) -> Tensor | list[Tensor]:
        pairs = zip(natives, self.views, strict=True)
        if isinstance(place, list):
            return in_images(pairs, self._wanted.patch_size, place, join)
        if place is not None:
            return at_size(pairs, self._wanted.patch_size, place)
        maps_B1HW = self._at_pixels(natives)
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

    def _log_scales(self) -> list[Tensor]:
        if not self._head.config.confidence:
            raise HeadMismatchError(NO_CONFIDENCE)
        return [one.log_scale for one in self._read() if one.log_scale is not None]

    def _confidences(self) -> list[Tensor]:
        with torch.inference_mode(False):
            return [confidence_of(log_scale) for log_scale in self._at_pixels(self._log_scales())]

    def at_pixels(self, native_B1HW: Tensor, views: Views) -> Tensor:
        """Native maps at their views' size; see ``placing.at_pixels``."""
        return at_pixels(native_B1HW, views, self._wanted.patch_size)

    def _read(self) -> list[DepthEstimate]:
        """The maps (B, 1, h, w) of each of ``views`` at the head's native size, computed once."""
        # Made on first use (setdefault is atomic): torch.compile traces this object's making.
        reading = self.__dict__.setdefault("_reading", threading.Lock())
        with torch.inference_mode(False), reading:
            if self._native is None:
                self._native = self._compute()
                self.free("the tokens were freed when this pass's depth was read")
            return self._native

    def _compute(self) -> list[DepthEstimate]:
        check_mode(self._head)
        with torch.no_grad():
            batches = [on_heads_device(one, self._head) for one in self._batches()]
            with without_autocast(next(iter(batches[0].levels.values())).device):
                natives = [estimate(self._head, one) for one in batches]
        check_finite([one.metres for one in natives])
        return natives

    def _say_camera(self) -> None:
        say_assumed_focal(self._head, self._head.config.canonical_focal)

    def _images(self, original_sizes: Size | Sequence[Size]) -> list[ImageViews]:
        """The views of each image, in the order of this pass."""
        known = self._preprocessing
        if known is None:
            raise HostError(
                "original_sizes needs the host's preprocessing, which this host does not carry: "
                "give attach(..., processor=...) the image processor that prepares its pixels, or "
                "a Preprocessing that says how they are made"
            )
        seen = [views.pixel_size for views in self.views for _ in range(views.count)]
        sizes = parse_sizes(original_sizes, "original_sizes")
        return arrange(sizes, known.known_rules(), seen, self._wanted.patch_size)

"""DepthPass: the depth of one tower pass, computed when it is first read.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.blocks import resize
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.geometry import Intrinsics, ViewGeometry
from clipdepth_plugin.head import DepthHead

Size = tuple[int, int]


class DepthPass(TowerPass):
    """One tower pass and its depth maps; what ``DepthPlugin.capture`` collects."""

    def __init__(
        self, head: DepthHead, preprocessing: Preprocessing | None, *tower_pass: Any
    ) -> None:
        super().__init__(*tower_pass)
        self._head = head
        self._preprocessing = preprocessing
        self._native: Tensor | None = None

    @property
    def depth(self) -> Tensor:
        """(B, 1, H, W) float32 metres at the tower's input size; tokens are freed by it.

        Raises:
            NoDepthError: A tap did not fire, or the maps are not finite.
            HeadMismatchError: The head is in training mode or on another device.
        """
        with torch.inference_mode(False):
            return resize(self._read(), self.pixel_size)

    @property
    def depths(self) -> list[Tensor]:
        """One (1, H, W) float32 map in metres for each image."""
        return list(self.depth)

    def predict(
        self,
        size: Size | None = None,
        *,
        original_sizes: Size | Sequence[Size] | None = None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None = None,
        focal_px: float | Sequence[float] | None = None,
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
        focal_px: float | Sequence[float] | None,
    ) -> Tensor | list[Tensor]:
        native_B1HW = self._read()
        sizes = None if original_sizes is None else self._one_each(original_sizes, "original_sizes")
        geometries = None if sizes is None else [self._geometry(one) for one in sizes]
        scales = self._camera_scales(geometries, intrinsics, focal_px)
        if scales is not None:
            native_B1HW = native_B1HW * native_B1HW.new_tensor(scales)[:, None, None, None]
        if geometries is None:
            return resize(native_B1HW, self.pixel_size if size is None else size)
        return [g.to_image(m) for g, m in zip(geometries, native_B1HW, strict=True)]

    def _read(self) -> Tensor:
        """The maps at the head's native size, computed once."""
        # Made on first use (setdefault is atomic): torch.compile traces this object's making.
        with self.__dict__.setdefault("_reading", threading.Lock()):
            if self._native is None:
                self._native = self._compute(self.features)
                self.free("the tokens were freed when this pass's depth was read")
            return self._native

    def _compute(self, features: TowerFeatures) -> Tensor:
        head = self._head
        if head.training:
            raise HeadMismatchError(
                "the head is in training mode, where reading depth would change its batch norms: "
                "call head.eval() (or plugin.eval()) first; to train, call plugin(pixels) or "
                "head(features)"
            )
        device = next(head.parameters()).device
        if all(x_BND.device != device for x_BND in features.levels.values()):
            elsewhere = next(iter(features.levels.values())).device
            raise HeadMismatchError(
                f"the head is on {device}, the tower on {elsewhere}: head.to({str(elsewhere)!r})"
            )
        with torch.no_grad():
            native_B1HW: Tensor = head(features)
        odd_B = (~torch.isfinite(native_B1HW)).flatten(1).any(dim=1)
        if bool(odd_B.any()):
            views = odd_B.nonzero().flatten().tolist()
            raise NoDepthError(
                f"the depth of views {views} is not finite: NaN or infinite pixels, or a tower "
                "that overflows in half precision (run it in bfloat16 or float32)"
            )
        return native_B1HW

    def _geometry(self, image_size: Size) -> ViewGeometry:
        known = self._preprocessing
        if known is None:
            raise HostError(
                "original_sizes needs the host's preprocessing, which this host does not carry: "
                "give attach(..., processor=...) its image processor"
            )
        if known.size != self.pixel_size:
            raise HostError(
                f"the host's preprocessing gives {known.size}, this pass saw {self.pixel_size}: "
                "its pictures were prepared in another way; use predict(size=...)"
            )
        return ViewGeometry.of(image_size, known)

    def _camera_scales(
        self,
        geometries: list[ViewGeometry] | None,
        intrinsics: Intrinsics | Sequence[Intrinsics] | None,
        focal_px: float | Sequence[float] | None,
    ) -> list[float] | None:
        """Factor of each view's metres by its camera: true over canonical focal length."""
        if intrinsics is None and focal_px is None:
            return None
        if intrinsics is not None and focal_px is not None:
            raise HostError("intrinsics and focal_px both say the focal length: give one")
        canonical = self._head.config.canonical_focal
        if canonical is None:
            raise HeadMismatchError(
                "this head was trained without a canonical camera (config.canonical_focal is "
                "None): the focal length cannot change its metres"
            )
        if intrinsics is not None:
            cameras = self._one_each(intrinsics, "intrinsics")
        else:
            cameras = [(f, f, 0.0, 0.0) for f in self._one_each(focal_px, "focal_px")]
        if geometries is not None:
            cameras = [g.intrinsics(c) for g, c in zip(geometries, cameras, strict=True)]
        return [math.sqrt(fx * fy) / canonical for fx, fy, _, _ in cameras]

    def _one_each(self, given: Any, name: str) -> list[Any]:
        """One value for each image, from one for all or a sequence of them."""
        single = not isinstance(given, Sequence) or (
            name != "focal_px" and len(given) > 0 and not isinstance(given[0], Sequence)
        )
        values = [given] * self.batch if single else list(given)
        if len(values) != self.batch:
            raise HostError(f"{name}: {len(values)} given for {self.batch} images")
        return values

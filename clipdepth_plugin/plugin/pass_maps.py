"""A head's maps of a tower pass: computed once, scaled by cameras, placed.

Axes: B views, C depth and confidence, H W a map's size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layout_rules import TowerCall
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.arguments import Size, parse_size, parse_sizes
from clipdepth_plugin.decoders.readout import NO_CONFIDENCE, DepthEstimate, confidence_of
from clipdepth_plugin.errors import HeadMismatchError, HostError, NoDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.maps.cameras import Cameras, Focals, camera_scales, views_themselves
from clipdepth_plugin.maps.geometry import ImageViews
from clipdepth_plugin.maps.matching import signatures
from clipdepth_plugin.maps.placing import Join, at_pixels, at_size, in_images
from clipdepth_plugin.maps.stitching import paste, stitch
from clipdepth_plugin.maps.tiling import arrange
from clipdepth_plugin.plugin.estimating import (
    check_finite,
    estimates,
    on_heads_device,
    without_depth,
)
from clipdepth_plugin.plugin.pass_graph import Finished, finished_in_graph
from clipdepth_plugin.plugin.reader import Reader
from clipdepth_plugin.precision import outside_inference

Place = Size | list[ImageViews] | None
"""Where maps go: one size, the images that the views were made of, or the tower's input."""


class PassMaps(TowerPass):
    """One tower pass and a head's maps of it, and where they go."""

    def __init__(self, reader: Reader, wanted: Wanted, call: TowerCall, hosts_own: bool) -> None:
        super().__init__(wanted, call, hosts_own)
        self.reader = reader
        self._native: list[DepthEstimate] | None = None
        self._signatures: list[Tensor] | None = None

    @property
    def metric(self) -> bool:
        """Whether its depth is in metres."""
        return self.reader.head.config.metric

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of each view."""
        return [views.pixel_size for views in self.views for _ in range(views.count)]

    def at_input(self) -> list[Tensor]:
        """The depth (B, 1, H, W) of each of ``views``: the caller's to write into."""
        natives, placed = self._read()
        if self.reader.says_unit:
            self.reader.say_assumed(self.views[0].pixel_size)
        return self._own_at_input([one.depth for one in natives]) if placed is None else placed

    def log_scales_at_input(self) -> list[Tensor]:
        """As ``at_input``: log of the error's scale."""
        return self._own_at_input(self.log_scales())

    def _own_at_input(self, natives: list[Tensor]) -> list[Tensor]:
        maps = at_pixels(natives, self.views, self.wanted.tower.patch_size)
        return [map_B1HW.clone() for map_B1HW in maps]

    def native_depths(
        self,
        images: Sequence[ImageViews] | None = None,
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
    ) -> list[Tensor]:
        """Native maps (B, 1, h, w) of each of ``views``, in metres of the cameras, or relative.

        NaN where a view is a constant picture.
        """
        natives, _ = self._read()
        return self.scaled([one.depth for one in natives], images, intrinsics, focal_px)

    def scaled(
        self,
        natives: list[Tensor],
        images: Sequence[ImageViews] | None,
        intrinsics: Cameras | None,
        focal_px: Focals | None,
    ) -> list[Tensor]:
        """Canonical metres (B, 1, h, w) in those of the cameras.

        These are given for ``images``; None: for the views as they are.
        """
        if intrinsics is None and focal_px is None:
            if self.reader.says_unit:
                self.reader.say_assumed(self.views[0].pixel_size)
            return natives
        if images is None:
            images = views_themselves(self.sizes)
        reader = self.reader
        scales = camera_scales(reader.head.config, images, intrinsics, focal_px, reader.lens)
        if None in scales:
            unknown = [index for index, scale in enumerate(scales) if scale is None]
            reader.say_assumed(self.sizes[0], f" for views {unknown}")
        factors = torch.tensor(
            [1.0 if scale is None else scale for scale in scales],
            dtype=torch.float32,  # of natives, too, whatever a decoder of one's own gives
            device=natives[0].device,
        )
        parts = factors.split([len(native) for native in natives])
        return [
            native_B1HW * factor_B[:, None, None, None]
            for native_B1HW, factor_B in zip(natives, parts, strict=True)
        ]

    def log_scales(self) -> list[Tensor]:
        """Native maps (B, 1, h, w) of each of ``views``: log of the error's scale."""
        if not self.reader.head.config.confidence:
            raise HeadMismatchError(NO_CONFIDENCE)
        natives, _ = self._read()
        return [one.log_scale for one in natives if one.log_scale is not None]

    def only(self, maps: list[Tensor], instead: str) -> Tensor:
        """The maps of views of one size."""
        if maps[1:]:
            sizes = ", ".join(f"{h} x {w}" for h, w in (views.pixel_size for views in self.views))
            raise NoDepthError(
                f"this pass saw views of several sizes ({sizes}), which make no one tensor: read "
                f".{instead}"
            )
        return maps[0]

    def placed(self, natives: list[Tensor], place: Place, join: Join) -> Tensor | list[Tensor]:
        """The maps where ``place`` says; joined by ``join`` where images have several views."""
        if isinstance(place, list):
            if not self.reader.head.config.metric and any(len(image) > 1 for image in place):
                raise HeadMismatchError(
                    "this head gives relative depth (config.metric is False), of each view up to "
                    "a scale and shift of its own, so an image's views don't join into one map: "
                    "read .depth or .depths, the views' own maps"
                )
            patch_size = self.wanted.tower.patch_size
            return [m.clone() for m in in_images(natives, self.views, patch_size, place, join)]
        if place is not None:
            return at_size(natives, self.views, self.wanted.tower.patch_size, place).clone()
        return as_one(self._own_at_input(natives))

    def place(self, size: Size | None, original_sizes: Size | Sequence[Size] | None) -> Place:
        """Where maps go, from the arguments of ``predict``."""
        if size is not None and original_sizes is not None:
            raise HostError("size and original_sizes both say how large the maps are: give one")
        if original_sizes is None:
            return None if size is None else parse_size(size, "size")
        known = self.reader.preprocessing
        if known is None:
            raise HostError(
                "original_sizes needs the host's preprocessing, which this host does not carry: "
                "give attach(..., processor=...) the image processor that prepares its pixels, or "
                "a Preprocessing that says how they are made"
            )
        sizes = parse_sizes(original_sizes, "original_sizes")
        return arrange(sizes, known.known_rules(), self.sizes, self.wanted.tower.patch_size)

    def in_images(
        self, images: list[ImageViews], intrinsics: Cameras | None, focal_px: Focals | None
    ) -> list[Tensor]:
        """(C, H, W) of each image: depth, and behind it confidence where the head has it."""
        with outside_inference():
            maps = self.placed(self.native_depths(images, intrinsics, focal_px), images, stitch)
            if self.reader.head.config.confidence:
                sure = self.placed(self.log_scales(), images, paste)
                maps = [
                    torch.cat([depth_1HW, confidence_of(log_scale_1HW)])
                    for depth_1HW, log_scale_1HW in zip(maps, sure, strict=True)
                ]
            return list(maps)

    def with_graph(
        self, intrinsics: Cameras | None, focal_px: Focals | None
    ) -> Tensor | list[Tensor]:
        """The maps at the tower's input, computed anew and with gradients; tokens stay."""
        head = self.reader.head
        natives = [head(on_heads_device(one, head)) for one in self.batches]
        trains = head.training or any(native.requires_grad for native in natives)
        if not trains and not torch.compiler.is_compiling():
            check_finite(natives)
        natives = self.scaled(natives, None, intrinsics, focal_px)
        return as_one(at_pixels(natives, self.views, self.wanted.tower.patch_size))

    def natives_and_signatures(self) -> tuple[list[DepthEstimate], list[Tensor]]:
        """For streams: the maps of each of ``views``, and ``signatures`` (B, N, S) of its tokens.

        Raises:
            NoDepthError: The pass was read before there was a stream.
        """
        natives, _ = self._read()
        if self._signatures is None:
            raise NoDepthError(
                "this pass's depth was read before the first stream was made, and its tokens were "
                "freed then: make the stream before the tower runs"
            )
        return natives, self._signatures

    def _read(self) -> tuple[list[DepthEstimate], list[Tensor] | None]:
        """The maps of each of ``views`` at the head's native size, computed once.

        Beside them their depth at the tower's input where these were computed by this call: they
        are the caller's own. Where they are read inference mode is off: they are the user's.
        """
        # Made on first use (setdefault is atomic): torch.compile traces this object's making.
        reading = self.__dict__.setdefault("_reading", threading.Lock())
        with reading:
            if self._native is not None:
                return self._native, None
            reader, level = self.reader, self.reader.stream_level
            finished = finished_in_graph(self, reader.head, reader.graphs)
            batches = self._batches() if finished is None or level is not None else []
            self._native, placed, empty = finished or self._finished(batches)
            if empty:
                reader.say_empty(empty)
            if level is not None:
                self._signatures = [signatures(one.levels[level]) for one in batches]
            self.free("the tokens were freed when this pass's depth was read")
            return self._native, placed

    def _finished(self, batches: list[TowerFeatures]) -> Finished:
        """Step by step, without a graph around all of it."""
        natives = estimates(self.reader.head, batches)
        ranges = self.pixel_ranges()
        if empty := check_finite([one.depth for one in natives], ranges):
            natives = list(map(without_depth, natives, ranges))
        return natives, None, empty


def as_one(maps: list[Tensor]) -> Tensor | list[Tensor]:
    """(B, 1, H, W) where all views are of one size, else (1, H, W) of each."""
    return maps[0] if len(maps) == 1 else [map_1HW for one in maps for map_1HW in one]

"""How hosts make one view of an image: padded, fitted or resized to whole patches.

A ``ViewRule`` says where the views of an image lie. Each is the arithmetic of one family's image
processor in transformers, to the pixel; tests hold it against the processor itself.

Sizes are (H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry

Half = Literal["even", "down"]


@dataclass(frozen=True)
class Squash:
    """The whole image, stretched to ``size``."""

    label: ClassVar[str] = "squashed"
    pads_behind: ClassVar[bool] = False
    size: Size

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        return ImageViews((ViewGeometry.squashed(image_size, self.size),))


@dataclass(frozen=True)
class ShortestSide:
    """The short side resized to ``to``, then a crop of ``size`` from the middle.

    Attributes:
        half: Where a crop begins that half pixels would begin: at the ``even`` side (torchvision,
            so timm and open_clip) or ``down`` (transformers).
    """

    label: ClassVar[str] = "resized by the short side and cropped"
    pads_behind: ClassVar[bool] = False
    size: Size
    to: int
    half: Half = "even"

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        height, width = image_size
        short = min(image_size)
        # In this order the product is exact, as in torchvision and transformers.
        scaled = (int(self.to * height / short), int(self.to * width / short))
        scale = (scaled[0] / height, scaled[1] / width)
        top, left = (
            _centre(side, view, self.half) for side, view in zip(scaled, self.size, strict=True)
        )
        return ImageViews((ViewGeometry(image_size, self.size, scale, (top, left)),))


@dataclass(frozen=True)
class PadToSquare:
    """Padded to a square, the odd pixel behind, then stretched to ``size``: LLaVA's ``do_pad``."""

    label: ClassVar[str] = "padded to a square"
    pads_behind: ClassVar[bool] = False
    size: Size

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        side = max(image_size)
        before = ((side - image_size[0]) // 2, (side - image_size[1]) // 2)
        scale = (self.size[0] / side, self.size[1] / side)
        offset = (before[0] * scale[0], before[1] * scale[1])
        return ImageViews((ViewGeometry(image_size, self.size, scale, offset),))


@dataclass(frozen=True)
class Fit:
    """Resized to fit into ``size`` with its shape kept, then padded.

    Attributes:
        align: Where the image lies: ``start`` pads below and at the right (transformers' PI0),
            ``middle`` around it, the odd pixel behind (open_clip's ``longest``), ``end`` above
            and at the left (LeRobot's ``resize_with_pad``).
        round_down: Whether sides are rounded down, and not to the nearest; ``start`` always does.
    """

    label: ClassVar[str] = "fitted and padded"
    pads_behind: ClassVar[bool] = False
    size: Size
    align: Literal["start", "middle", "end"]
    round_down: bool = False

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        (height, width), (view_h, view_w) = image_size, self.size
        if self.align == "start":
            factor = min(view_h / height, view_w / width)
            resized = (int(height * factor), int(width * factor))
            offset = (0, 0)
        else:
            ratio = max(height / view_h, width / view_w)
            whole = int if self.round_down else round
            resized = (whole(height / ratio), whole(width / ratio))
            share = 1 if self.align == "end" else 2  # of the padding, what lies in front: 1 / share
            offset = ((view_h - resized[0]) // share, (view_w - resized[1]) // share)
        scale = (resized[0] / height, resized[1] / width)
        return ImageViews((ViewGeometry(image_size, self.size, scale, offset),))


@dataclass(frozen=True)
class SmartResize:
    """Qwen-VL's: both sides whole multiples of ``factor``, the area within bounds.

    Attributes:
        factor: What both sides are multiples of.
        min_pixels: The least area.
        max_pixels: The largest.
        least: So many times ``factor`` is a side at least before the bounds are looked at: LFM2-VL
            has 1, Qwen-VL 0.
    """

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = False
    factor: int
    min_pixels: int
    max_pixels: int
    least: int = 0

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        height, width = image_size
        rows, columns = (max(self.least, round(side / self.factor)) for side in image_size)
        resized = self._whole(rows, columns)
        area = resized[0] * resized[1]
        if area > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / self.factor))
            resized = self._whole(rows, max(1, math.floor(width / shrink / self.factor)))
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / self.factor)
            resized = self._whole(rows, math.ceil(width * grow / self.factor))
        return ImageViews((ViewGeometry.squashed(image_size, resized),))

    def _whole(self, rows: int, columns: int) -> Size:
        return rows * self.factor, columns * self.factor


@dataclass(frozen=True)
class WholePatches:
    """Pixtral's: shrunk to fit into ``limit``, then both sides rounded up to whole patches."""

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = True
    limit: Size
    patch: Size

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        ratio = max(image_size[0] / self.limit[0], image_size[1] / self.limit[1])
        height, width = image_size
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        resized = (
            ((height - 1) // self.patch[0] + 1) * self.patch[0],
            ((width - 1) // self.patch[1] + 1) * self.patch[1],
        )
        return ImageViews((ViewGeometry.squashed(image_size, resized),))


@dataclass(frozen=True)
class MaxPatches:
    """SigLIP 2's NaFlex: as large as ``max_patches`` patches allow, both sides rounded up."""

    label: ClassVar[str] = "resized to whole patches"
    pads_behind: ClassVar[bool] = False
    patch: int
    max_patches: int

    def views(self, image_size: Size) -> ImageViews:
        """See ``ViewRule``."""
        # The processor's own bisection: its bounds and tolerance decide the size.
        tolerance = 1e-5
        low, high = tolerance / 10, 100.0
        while high - low >= tolerance:
            middle = (low + high) / 2
            rows, columns = self._patches(image_size, middle)
            if rows * columns <= self.max_patches:
                low = middle
            else:
                high = middle
        rows, columns = self._patches(image_size, low)
        resized = (rows * self.patch, columns * self.patch)
        return ImageViews((ViewGeometry.squashed(image_size, resized),))

    def _patches(self, image_size: Size, scale: float) -> Size:
        rows, columns = (max(1, math.ceil(side * scale / self.patch)) for side in image_size)
        return rows, columns


def _centre(size: int, view: int, half: Half) -> int:
    """Where ``center_crop`` puts the first pixel of a side in the view.

    Negative where it cuts, positive where it pads a side that is too short (the odd pixel goes
    behind).
    """
    if size < view:
        return (view - size) // 2
    return -round((size - view) / 2) if half == "even" else -((size - view) // 2)

"""View rules that ``Preprocessing.resize`` names: the whole image in one view of a fixed size.

Each is the arithmetic of an image processor, to the pixel; tests hold it against the processor.
Sizes are (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

Half = Literal["even", "down"]


@dataclass(frozen=True)
class Squash(ViewRule):
    """The whole image, stretched to ``size``."""

    label: ClassVar[str] = "squashed"
    size: Size

    def views(self, image_size: Size) -> ImageViews:
        return ImageViews((ViewGeometry.squashed(image_size, self.size),))


@dataclass(frozen=True)
class ShortestSide(ViewRule):
    """The short side resized to ``to``, then a crop of ``size`` from the middle.

    ``half`` is where a crop begins that half pixels would begin: at the ``even`` side (torchvision,
    so timm and open_clip) or ``down`` (transformers).
    """

    label: ClassVar[str] = "resized by the short side and cropped"
    size: Size
    to: int
    half: Half = "even"

    def views(self, image_size: Size) -> ImageViews:
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
class PadToSquare(ViewRule):
    """Padded to a square, the odd pixel behind, then stretched to ``size``: LLaVA's ``do_pad``."""

    label: ClassVar[str] = "padded to a square"
    size: Size

    def views(self, image_size: Size) -> ImageViews:
        side = max(image_size)
        before = ((side - image_size[0]) // 2, (side - image_size[1]) // 2)
        scale = (self.size[0] / side, self.size[1] / side)
        offset = (before[0] * scale[0], before[1] * scale[1])
        return ImageViews((ViewGeometry(image_size, self.size, scale, offset),))


@dataclass(frozen=True)
class Fit(ViewRule):
    """Resized to fit into ``size`` with its shape kept, then padded.

    ``align`` says where the image lies: ``start`` pads below and at the right (transformers' PI0),
    ``middle`` around it, the odd pixel behind (open_clip's ``longest``), ``end`` above and at the
    left (LeRobot's). ``round_down``: sides are not rounded to the nearest; ``start`` never does.
    """

    label: ClassVar[str] = "fitted and padded"
    size: Size
    align: Literal["start", "middle", "end"]
    round_down: bool = False

    def views(self, image_size: Size) -> ImageViews:
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
class PaddedToPatches(ViewRule):
    """What another rule makes, padded behind to whole patches, as the host pads a batch."""

    label: ClassVar[str] = "padded to whole patches"
    pads_behind: ClassVar[bool] = True
    rule: ViewRule
    patch: Size

    def views(self, image_size: Size) -> ImageViews:
        made = self.rule.views(image_size)
        return replace(made, views=tuple(map(self._padded, made.views)))

    def _padded(self, view: ViewGeometry) -> ViewGeometry:
        height, width = (
            -(-side // of) * of for side, of in zip(view.view_size, self.patch, strict=True)
        )
        return replace(view, view_size=(height, width))


def _centre(size: int, view: int, half: Half) -> int:
    """Where ``center_crop`` puts a side's first pixel in the view: below 0 where it cuts."""
    if size < view:
        return (view - size) // 2
    return -round((size - view) / 2) if half == "even" else -((size - view) // 2)

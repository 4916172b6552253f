"""Which view of a pass shows which part of which image, found from the host's view rules.

A host may have several: tiles where the caller asked for them, frames of a video. The number and
sizes of the views say which made them; where rules fit that differ, an error asks for more.
Sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry

RGB = tuple[float, float, float]
BLACK: RGB = (0.0, 0.0, 0.0)


class ViewRule(Protocol):
    """How a host makes views of an image.

    Attributes:
        label: For messages.
        pads_behind: Whether views are padded, below and at the right, to the largest of a batch.
        padding: RGB in 0..1 of what a view shows beside the image; None: the mean colour.
    """

    label: ClassVar[str]
    pads_behind: ClassVar[bool] = False
    padding: ClassVar[RGB | None] = None

    def views(self, image_size: Size) -> ImageViews:
        """The views of an image of this size."""


def arrange(
    sizes: Size | list[Size],
    rules: Sequence[ViewRule],
    seen: Sequence[Size],
    patch: Size = (1, 1),
) -> list[ImageViews]:
    """The views of each image, in the order of a pass.

    Args:
        sizes: (H, W) of the user's images: a list with one for each, or one for as many as the
            pass saw.
        rules: The host's, at least one.
        seen: (H, W) of each view that the tower saw.
        patch: (H, W) of a patch: towers may leave out a view's last, incomplete ones.
    """
    tried = [_try(rule, sizes, seen, patch) for rule in rules]
    fitting = [attempt for attempt in tried if attempt.fits]
    if not fitting:
        turned = _turned(sizes)
        swapped = any(_try(rule, turned, seen, patch).fits for rule in rules)
        raise _no_fit(sizes, seen, tried, swapped=swapped)
    chosen, *others = fitting
    for other in others:
        if _geometries(other.images) != _geometries(chosen.images):
            raise _ambiguous(sizes, seen, chosen, other)
    return chosen.images


@dataclass(frozen=True)
class _Attempt:
    """What one rule would make of the images."""

    rule: ViewRule
    images: list[ImageViews]
    fits: bool


def _try(rule: ViewRule, sizes: Size | list[Size], seen: Sequence[Size], patch: Size) -> _Attempt:
    if isinstance(sizes, tuple):
        one = rule.views(sizes)
        images = [one] * max(1, len(seen) // len(one))
    else:
        images = [rule.views(size) for size in sizes]
    if sum(map(len, images)) != len(seen):
        return _Attempt(rule, images, fits=False)
    if rule.pads_behind:
        rest = iter(seen)
        images = [
            replace(image, views=tuple(_padded(view, next(rest), patch) for view in image.views))
            for image in images
        ]
    fits = [view.view_size for view in _geometries(images)] == list(seen)
    return _Attempt(rule, images, fits)


def _padded(view: ViewGeometry, seen: Size, patch: Size) -> ViewGeometry:
    """The view as a batch pads it, below and right, or as it is where whole patches end before."""
    sides = zip(seen, view.view_size, patch, strict=True)
    fits = all(whole > own - side for whole, own, side in sides)
    return replace(view, view_size=seen) if fits else view


def _geometries(images: list[ImageViews]) -> list[ViewGeometry]:
    return [view for image in images for view in image.views]


def _turned(sizes: Size | list[Size]) -> Size | list[Size]:
    """The sizes of somebody who takes (width, height) for (height, width)."""
    if isinstance(sizes, tuple):
        return sizes[::-1]
    return [size[::-1] for size in sizes]


def _ambiguous(
    sizes: Size | list[Size], seen: Sequence[Size], one: _Attempt, other: _Attempt
) -> HostError:
    counts = [len(attempt.images) for attempt in (one, other)]
    cures = [
        f"original_sizes={[sizes]} for one image"
        if count == 1
        else f"original_sizes={[sizes]} * {count} for {count} images"
        for count in counts
    ]
    if isinstance(sizes, list) or counts[0] == counts[1]:
        cures = ["attach(..., processor=...) with the image processor or the video processor alone"]
    return HostError(
        f"original_sizes: {len(seen)} views may be {counts[0]} images {one.rule.label} or "
        f"{counts[1]} images {other.rule.label}: say which by {', or '.join(cures)}"
    )


def _no_fit(
    sizes: Size | list[Size], seen: Sequence[Size], tried: list[_Attempt], *, swapped: bool
) -> HostError:
    lines = []
    for attempt in tried:
        counts = [len(image) for image in attempt.images]
        expected = sorted({view.view_size for view in _geometries(attempt.images)})
        lines.append(f"{attempt.rule.label}: {_short(counts)} views of {_short(expected)}")
    images = "images of" if isinstance(sizes, list) else "any number of images of"
    cure = (
        "With height and width swapped they fit: sizes are (height, width), Pillow's are (width, "
        "height)."
        if swapped
        else "Give the (height, width) of every image of the pass, in order, and attach(..., "
        "processor=...) the very processor that prepared them"
    )
    return HostError(
        f"original_sizes: this pass has {len(seen)} views of {_short(sorted(set(seen)))}; of "
        f"{images} {_short(sizes)} this host makes, {'; or '.join(lines)}. {cure}"
    )


def _short(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return f"[{shown}, ... {len(items)} in all]" if len(items) > 8 else f"[{shown}]"

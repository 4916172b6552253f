"""Which of a pass's views show which part of which image, found from what the host may do.

A host may make views in several ways: tiles where the caller asked for them, frames of a video,
several images in one prompt. Number and sizes of the views that the tower saw say which it was;
what they leave open is refused.

Sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


class ViewRule(Protocol):
    """One way in which a host makes views of an image.

    Attributes:
        label: For messages.
        pads_behind: Whether views are padded, below and at the right, to the largest of a batch.
    """

    label: ClassVar[str]
    pads_behind: ClassVar[bool]

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
        rules: The ways in which the host makes views, at least one.
        seen: (H, W) of each view that the tower saw.
        patch: (H, W) of a patch: towers may leave out a view's last, incomplete ones.

    Raises:
        HostError: None of the rules fits what was seen, or several do and differ.
    """
    tried = [_try(way, sizes, seen, patch) for way in rules]
    fitting = [attempt for attempt in tried if attempt.fits]
    if not fitting:
        raise _no_fit(sizes, seen, tried)
    chosen, *others = fitting
    for other in others:
        if _geometries(other.images) != _geometries(chosen.images):
            raise HostError(
                f"original_sizes: {len(seen)} views may be {len(chosen.images)} images "
                f"{chosen.way.label} or {len(other.images)} images {other.way.label}: give the "
                "(height, width) of every image of the pass, or attach(..., processor=...) the "
                "image processor or the video processor alone"
            )
    return chosen.images


@dataclass(frozen=True)
class _Attempt:
    """What one way would make of the images."""

    way: ViewRule
    images: list[ImageViews]
    fits: bool


def _try(way: ViewRule, sizes: Size | list[Size], seen: Sequence[Size], patch: Size) -> _Attempt:
    if isinstance(sizes, tuple):
        one = way.views(sizes)
        images = [one] * max(1, len(seen) // len(one))
    else:
        images = [way.views(size) for size in sizes]
    if sum(map(len, images)) != len(seen):
        return _Attempt(way, images, fits=False)
    if way.pads_behind:
        rest = iter(seen)
        images = [
            replace(image, views=tuple(_padded(view, next(rest), patch) for view in image.views))
            for image in images
        ]
    fits = [view.view_size for view in _geometries(images)] == list(seen)
    return _Attempt(way, images, fits)


def _padded(view: ViewGeometry, seen: Size, patch: Size) -> ViewGeometry:
    """The view with the padding that a batch puts below it and at its right.

    Or without its last, incomplete patches, where the tower takes them for padding.
    """
    sides = zip(seen, view.view_size, patch, strict=True)
    fits = all(whole > own - side for whole, own, side in sides)
    return replace(view, view_size=seen) if fits else view


def _geometries(images: list[ImageViews]) -> list[ViewGeometry]:
    return [view for image in images for view in image.views]


def _no_fit(sizes: Size | list[Size], seen: Sequence[Size], tried: list[_Attempt]) -> HostError:
    lines = []
    for attempt in tried:
        counts = [len(image) for image in attempt.images]
        expected = sorted({view.view_size for view in _geometries(attempt.images)})
        lines.append(f"{attempt.way.label}: {_short(counts)} views of {_short(expected)}")
    images = "images of" if isinstance(sizes, list) else "any number of images of"
    return HostError(
        f"original_sizes: this pass has {len(seen)} views of {_short(sorted(set(seen)))}; of "
        f"{images} {_short(sizes)} this host makes, {'; or '.join(lines)}. Give the (height, "
        "width) of every image of the pass, in order, and attach(..., processor=...) the very "
        "processor that prepared them"
    )


def _short(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return f"[{shown}, ... {len(items)} in all]" if len(items) > 8 else f"[{shown}]"

"""How a processor makes views, from what it makes of a picture of coordinates: no list of options.

Red grows with x, green with y, blue is full wherever there is a picture. A view whose pixels are
where a resize, a crop and a padding put it is known; what is anything else is not guessed.

Axes: V views, H W their pixels; sizes are (H, W).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.processors.registry import Read
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

_LOW, _SPAN = 0.1, 0.8  # red and green of a picture's first edge, and how far they grow
_PROBES: tuple[Size, ...] = ((150, 230), (260, 170), (1024, 1024))
_NEAR = 3.5 / 255
"""Steps of grey that the roundings of two resizes make."""
_OTHERWISE = (
    "what it makes is not the picture resized, cropped and padded, normalised as its settings say"
)


@dataclass(frozen=True)
class AsSeen(ViewRule):
    """One view of an image, where the processor itself was seen to put it."""

    label: ClassVar[str] = "as their processor makes them"
    processor: Any = field(repr=False)
    normalisation: Preprocessing = field(repr=False)

    def views(self, image_size: Size) -> ImageViews:
        return ImageViews((_seen(self.processor, self.normalisation, image_size),))


def read_by_behaviour(name: str, processor: Any, normalisation: Preprocessing) -> Read | str:
    """What a processor does; why that is not known."""
    made = _instance(name, processor)
    if made is None:
        return "no class of the installed transformers"
    rule = AsSeen(made, normalisation)
    try:
        sizes = [rule.views(size).views[0].view_size for size in _PROBES]
    except HostError as error:
        return str(error)
    return Read(sizes[-1], view_rules=(rule,))


def _instance(name: str, processor: Any) -> Any:
    """The processor itself; from a dict, one of the class of transformers that it names."""
    if not isinstance(processor, Mapping):
        return processor if callable(processor) else None
    import transformers

    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not hasattr(kind, "from_dict"):
        return None
    try:
        return kind.from_dict(dict(processor))
    except (TypeError, ValueError, KeyError, AttributeError):
        return None  # settings that the class does not take


@functools.lru_cache(maxsize=256)
def _seen(processor: Any, normalisation: Preprocessing, size: Size) -> ViewGeometry:
    views_V3HW = _views(processor, size)
    mean_311, std_311 = (
        torch.tensor(values).view(3, 1, 1) for values in (normalisation.mean, normalisation.std)
    )
    geometries = {_geometry(view * std_311 + mean_311, size) for view in views_V3HW.float()}
    if len(geometries) != 1:
        raise HostError(
            f"it makes {len(geometries)} views of a picture that show other parts of it"
        )
    return geometries.pop()


def _views(processor: Any, size: Size) -> Tensor:
    """(V, 3, H, W) what it makes of a picture of coordinates: of frames, as many."""
    picture = coordinates(size)
    options: dict[str, Any] = {"return_tensors": "pt"}
    try:
        if type(processor).__name__.endswith("VideoProcessor"):
            frames = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            out = processor(videos=[torch.stack([frames] * 4)], do_sample_frames=False, **options)
        else:
            out = processor(images=[picture], **options)
    except Exception as error:
        raise HostError(f"it takes no lone picture: {type(error).__name__}: {error}") from error
    return _as_pictures(out, processor)


def _as_pictures(out: Any, processor: Any) -> Tensor:
    if others := [key for key in out if key.startswith("pixel_values_") and "video" not in key]:
        raise HostError(f"it makes more views of a picture: {', '.join(others)}")
    for key in ("pixel_values", "pixel_values_videos"):
        values = out.get(key)
        if isinstance(values, list | tuple) and len(values) == 1:
            values = torch.as_tensor(values[0])
        if not isinstance(values, Tensor):
            continue
        if values.ndim >= 4 and values.shape[-3] == 3:
            return values.flatten(0, -4) if values.ndim > 4 else values
        grid = out.get("image_grid_thw", out.get("video_grid_thw"))
        if values.ndim == 2 and isinstance(grid, Tensor) and len(grid) == 1:
            return _unpacked(values, [int(one) for one in grid[0]], processor)
    raise HostError("its pixel_values are neither pictures nor patches in merge order")


def _unpacked(patches_ND: Tensor, grid: list[int], processor: Any) -> Tensor:
    """Rows of patches in merge order, as pictures."""
    merge, patch = int(processor.merge_size), int(processor.patch_size)
    times = getattr(processor, "temporal_patch_size", 1) or 1
    t, rows, columns = grid
    if patches_ND.shape != (t * rows * columns, 3 * times * patch * patch):
        raise HostError("its rows of pixel_values are no patches in merge order")
    return rearrange(
        patches_ND,
        "(t h w mh mw) (c f ph pw) -> (t f) c (h mh ph) (w mw pw)",
        t=t, h=rows // merge, w=columns // merge, mh=merge, mw=merge,
        c=3, f=times, ph=patch, pw=patch,
    )  # fmt: skip


def coordinates(size: Size) -> Image.Image:
    """The picture whose pixels say where they are."""
    y_HW, x_HW = (_LOW + _SPAN * (np.arange(length) + 0.5) / length for length in size)
    rgb_HW3 = np.ones((*size, 3))
    rgb_HW3[..., 0], rgb_HW3[..., 1] = x_HW[None], y_HW[:, None]
    return Image.fromarray((rgb_HW3 * 255).round().astype(np.uint8))


def _geometry(rgb_3HW: Tensor, size: Size) -> ViewGeometry:
    """Where a view lies, so that every pixel of the picture in it says so."""
    view_size = (rgb_3HW.shape[1], rgb_3HW.shape[2])
    squashed = ViewGeometry.squashed(size, view_size)
    if _holds(rgb_3HW, squashed):
        return squashed
    axes = [_along(rgb_3HW, axis, size[axis]) for axis in (0, 1)]
    found = ViewGeometry(size, view_size, (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1]))
    if not _holds(rgb_3HW, found):
        raise HostError(_OTHERWISE)
    return found


def _along(rgb_3HW: Tensor, axis: int, length: int) -> tuple[float, float]:
    """(scale, offset) of one axis, by least squares over the pixels that show the picture."""
    inside_HW = (rgb_3HW[2] - 1).abs() < 0.02
    for one_HW in rgb_3HW[:2]:
        inside_HW = inside_HW & (one_HW > _LOW - 0.02) & (one_HW < _LOW + _SPAN + 0.02)
    lines_HW, shown_HW = rgb_3HW[1 - axis].movedim(axis, 0), inside_HW.movedim(axis, 0)
    cells = shown_HW.float().mean(dim=1).gt(0.2).nonzero()[:, 0]
    cells = cells[3:-3]  # where filters end
    if len(cells) < 8:
        raise HostError(_OTHERWISE)
    sums = (lines_HW * shown_HW).sum(dim=1) / shown_HW.sum(dim=1).clamp_min(1)
    place = ((sums[cells].double() - _LOW) / _SPAN * length).numpy()
    slope, first = np.polyfit(cells.numpy() + 0.5, place, 1)
    if slope <= 0:
        raise HostError(_OTHERWISE)
    scale, offset = 1 / float(slope), -float(first) / float(slope)
    # Pictures are resized to whole pixels and shifted by whole ones.
    resized = round(scale * length)
    if abs(scale * length - resized) < 0.3:
        scale = resized / length
        middle = float(cells.double().mean()) + 0.5
        offset = middle - float(place.mean()) * scale
    return scale, (round(offset) if abs(offset - round(offset)) < 0.3 else offset)


def _holds(rgb_3HW: Tensor, view: ViewGeometry) -> bool:
    """Whether every pixel shows what the geometry says, and nothing behind the picture's edges."""
    places, clear, beyond = [], [], []
    for axis in (0, 1):
        cells = torch.arange(view.view_size[axis]) + 0.5
        place = (cells - view.offset[axis]) / view.scale[axis]
        margin = 2.5 * max(1.0, 1 / view.scale[axis])
        places.append(place / view.image_size[axis])
        clear.append((place > margin) & (place < view.image_size[axis] - margin))
        beyond.append((place < -margin) | (place > view.image_size[axis] + margin))
    clear_HW = clear[0][:, None] & clear[1][None]
    if not clear_HW.any():
        return False
    expected_3HW = torch.ones_like(rgb_3HW)
    expected_3HW[0] = _LOW + _SPAN * places[1][None]
    expected_3HW[1] = _LOW + _SPAN * places[0][:, None]
    if (rgb_3HW - expected_3HW).abs().amax(dim=0)[clear_HW].max() > _NEAR:
        return False
    beyond_HW = beyond[0][:, None] | beyond[1][None]
    # Padding is of one colour.
    outside_3N = rgb_3HW[:, beyond_HW]
    return not outside_3N.numel() or bool((outside_3N.amax(1) - outside_3N.amin(1)).max() < _NEAR)

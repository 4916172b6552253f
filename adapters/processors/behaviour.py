"""How a processor makes views, from what it makes of a picture of coordinates: no list of options.

Red grows with x, green with y, blue is full wherever there is a picture. A view whose pixels are
where a resize, a crop and a padding put it is known; what is anything else is not guessed.

Axes: V views, H W their pixels; sizes are (H, W).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipdepth_plugin.adapters.preprocessing import Preprocessing, triple
from clipdepth_plugin.adapters.processors.registry import Read
from clipdepth_plugin.adapters.processors.unpacking import Views, views_of
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

_LOW, _SPAN = 0.1, 0.8  # red and green of a picture's first edge, and how far they grow
_PROBES: tuple[Size, ...] = ((150, 230), (260, 170), (1024, 1024))
_NEAR = 3.5 / 255
"""Steps of grey that the roundings of two resizes make."""
_LOOKED_AT = 256  # rows and columns of a view
_LEAST, _NEAREST = 16, 0.5  # pixels: of a view whose places can be told; half of one is cut off
_OTHERWISE = (
    "what it makes is not the picture resized, cropped and padded, normalised as its settings say"
)


class _TakesNoneAloneError(HostError):
    """A processor fails on one picture without words, boxes or another picture."""


@dataclass(frozen=True)
class AsSeen(ViewRule):
    """One view of an image, where the processor itself was seen to put it.

    Equal where class and settings are: the processor is a copy, as it was when it was read.
    """

    label: ClassVar[str] = "as their processor makes them"
    kind: type
    settings: str = field(repr=False)
    normalisation: Preprocessing = field(repr=False)
    processor: Any = field(repr=False, compare=False)

    def views(self, image_size: Size) -> ImageViews:
        return ImageViews((_seen(self, image_size),))


def read_by_behaviour(name: str, processor: Any, normalisation: Preprocessing) -> Read | str:
    """What a processor does; why that is not known."""
    made = _instance(name, processor)
    if made is None:
        return "no class of the installed transformers"
    kept, settings = copy.deepcopy(made), repr(made.to_dict())
    why = ""
    for colours in (normalisation, _seen_normalisation(kept)):
        if colours is None:
            continue
        rule = AsSeen(type(made), settings, colours, kept)
        try:
            sizes = [rule.views(size).views[0].view_size for size in _PROBES]
        except HostError as error:
            why = why or str(error)
            continue
        return Read(sizes[-1], view_rules=(rule,), normalisation=(colours.mean, colours.std))
    return why


def contradicts(name: str, processor: Any, found: Preprocessing) -> bool:
    """Whether a processor puts a picture elsewhere than its settings were read to say."""
    if isinstance(processor, Mapping):  # a step that a file does not name was read as off
        processor = {"do_center_crop": False, "do_pad": False, **processor}
    made, (rule,) = _instance(name, processor), found.rules
    if made is None or min(found.size) < _LEAST:
        return False
    (view,) = rule.views(_PROBES[0]).views
    try:
        shown = [_as_rgb(views, found) for views in _views(made, coordinates(_PROBES[0]))]
    except _TakesNoneAloneError:
        return False  # what its settings say is all that is known
    except HostError:
        return True
    near = _NEAR + (_NEAREST / min(found.size) if found.interpolation == "nearest" else 0)
    return not any(all(_holds(one, view, near) for one in views) for views in shown)


def _instance(name: str, processor: Any) -> Any:
    """The processor itself; from a dict, one of the class of transformers that it names."""
    if not isinstance(processor, Mapping):
        return processor if callable(processor) else None
    import transformers

    for known in (name, f"{name}Fast"):  # transformers 4 has some as "Fast" alone
        kind = getattr(transformers, known, None)
        if not isinstance(kind, type) or not hasattr(kind, "from_dict"):
            continue
        try:
            return kind.from_dict(dict(processor))
        except (TypeError, ValueError, LookupError, AttributeError, ImportError):
            return None  # settings that the class does not take
    return None


@functools.lru_cache(maxsize=256)
def _seen(rule: AsSeen, size: Size) -> ViewGeometry:
    error = HostError(_OTHERWISE)
    for views in _views(rule.processor, coordinates(size)):
        try:
            geometries = {geometry_of(one, size) for one in _as_rgb(views, rule.normalisation)}
        except HostError as why:
            error = why
            continue
        if len(geometries) == 1:
            return geometries.pop()
        error = HostError(
            f"it makes {len(geometries)} views of a picture that show other parts of it"
        )
    raise error


def _seen_normalisation(processor: Any) -> Preprocessing | None:
    """What it does to black and to white, where that is a mean and a deviation."""
    ends = []
    for grey in (0, 255):
        plain = Image.new("RGB", _PROBES[0][::-1], (grey, grey, grey))
        try:
            view_3HW = next(_views(processor, plain))[0].double()
        except HostError:
            return None
        ends.append(view_3HW[:, view_3HW.shape[1] // 2, view_3HW.shape[2] // 2])
    black_3, std_3 = ends[0], 1 / (ends[1] - ends[0])
    if not bool((std_3.isfinite() & (std_3 > 0)).all()):
        return None
    mean, std = triple((-black_3 * std_3).tolist()), triple(std_3.tolist())
    return Preprocessing(mean, std, (1, 1), unknown="not yet read")


def _as_rgb(views: Views, normalisation: Preprocessing) -> Views:
    mean_311, std_311 = (
        torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
        for values in (normalisation.mean, normalisation.std)
    )
    return [view_3HW.float() * std_311 + mean_311 for view_3HW in views]


def _views(processor: Any, picture: Image.Image) -> Iterator[Views]:
    """What it makes of a picture; of a video, of as many frames."""
    options: dict[str, Any] = {"return_tensors": "pt"}
    try:
        if type(processor).__name__.endswith("VideoProcessor"):
            frames = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            out = processor(videos=[torch.stack([frames] * 4)], do_sample_frames=False, **options)
        else:
            out = processor(images=[picture], **options)
    except Exception as error:
        raise _TakesNoneAloneError(
            f"it takes no lone picture: {type(error).__name__}: {error}"
        ) from error
    yield from views_of(out, processor)


def coordinates(size: Size) -> Image.Image:
    """The picture whose pixels say where they are."""
    y_HW, x_HW = (_LOW + _SPAN * (np.arange(length) + 0.5) / length for length in size)
    rgb_HW3 = np.ones((*size, 3))
    rgb_HW3[..., 0], rgb_HW3[..., 1] = x_HW[None], y_HW[:, None]
    return Image.fromarray((rgb_HW3 * 255).round().astype(np.uint8))


def geometry_of(rgb_3HW: Tensor, size: Size) -> ViewGeometry:
    """Where a view of ``coordinates(size)`` lies, so that every pixel of the picture says so."""
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
    step = max(1, rgb_3HW.shape[2 - axis] // _LOOKED_AT)
    rgb_3HW = rgb_3HW[:, :, ::step] if axis == 0 else rgb_3HW[:, ::step]
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


def _holds(rgb_3HW: Tensor, view: ViewGeometry, near: float = _NEAR) -> bool:
    """Whether pixels (of large views some) show what the geometry says, and nothing beyond it."""
    if tuple(rgb_3HW.shape[1:]) != view.view_size:
        return False
    steps = [max(1, side // _LOOKED_AT) for side in view.view_size]
    rgb_3HW = rgb_3HW[:, :: steps[0], :: steps[1]]
    places, clear, beyond = [], [], []
    for axis in (0, 1):
        cells = torch.arange(0, view.view_size[axis], steps[axis], dtype=torch.float32) + 0.5
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
    if (rgb_3HW - expected_3HW).abs().amax(dim=0)[clear_HW].max() > near:
        return False
    beyond_HW = beyond[0][:, None] | beyond[1][None]
    # Padding is of one colour.
    outside_3N = rgb_3HW[:, beyond_HW]
    return not outside_3N.numel() or bool((outside_3N.amax(1) - outside_3N.amin(1)).max() < _NEAR)

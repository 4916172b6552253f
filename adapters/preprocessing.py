"""How a host turns a picture into its tower's input: read from the host, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from clipdepth_plugin.errors import HostError

ResizeKind = Literal["squash", "shortest", "pad"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
Triple = tuple[float, float, float]

# (mean, std) of the models' published preprocessing.
CLIP_NORMALISATION: tuple[Triple, Triple] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET_NORMALISATION: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_NORMALISATION: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_PIL_FILTERS: dict[int, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to the tower's input.

    Attributes:
        mean: Subtracted from RGB in 0..1.
        std: Divided by after that.
        size: (H, W) of the tower's input.
        resize: ``squash`` to size; ``shortest``: the short side to ``resize_to``, then a centre
            crop; ``pad``: padded to a square in the middle, then resized. None: not known.
        resize_to: The short side's length before the crop; None is the crop's own short side.
        interpolation: Filter of the resize.
        tilings: (H, W) of the canvases that the host may cut an image's tiles of ``size`` from,
            after an overview squashed to ``size``; empty where it sees an image as one view.
    """

    mean: Triple
    std: Triple
    size: tuple[int, int]
    resize: ResizeKind | None = None
    resize_to: int | None = None
    interpolation: Interpolation = "bicubic"
    tilings: tuple[tuple[int, int], ...] = ()

    def at_size(self, size: tuple[int, int]) -> Self:
        """The same for a tower that is given pictures of another (H, W)."""
        to = self.resize_to
        if to is not None:
            to = round(to * min(size) / min(self.size))
        return replace(self, size=size, resize_to=to)


def from_processor(processor: Any) -> Preprocessing:
    """Reads a Hugging Face image processor (or a processor that has one, or its dict).

    Raises:
        HostError: It does not say what is needed; names what is missing.
    """
    inner = getattr(processor, "image_processor", processor)
    given: Mapping[str, Any] = inner if isinstance(inner, Mapping) else inner.to_dict()
    name = given.get("image_processor_type") or type(inner).__name__
    crops = bool(given.get("do_center_crop"))
    resized = given.get("size")
    size = (_pair(given.get("crop_size")) if crops else None) or _pair(resized)
    missing = [
        what
        for what, value in (
            ("image_mean", given.get("image_mean")),
            ("image_std", given.get("image_std")),
            ("size or crop_size", size),
        )
        if value is None
    ]
    if missing or size is None:
        raise HostError(f"{name}: cannot read {', '.join(missing)} from this image processor")
    if given.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = _triple(given["image_mean"]), _triple(given["image_std"])
    resize, shortest = _resize_of(given, str(name), size)
    filter_number = int(given.get("resample", 3) or 3)
    interpolation = _PIL_FILTERS.get(filter_number, "bicubic")
    tilings = _tilings_of(given, str(name), size)
    return Preprocessing(mean, std, size, resize, shortest, interpolation, tilings)


# Steps after which the tower's input is not the whole picture at one known place.
_UNKNOWN_STEPS = (
    *("crop_pct", "crop_to_patches", "do_image_splitting", "do_pan_and_scan"),
    "image_grid_pinpoints",
)


def _resize_of(
    given: Mapping[str, Any], name: str, size: tuple[int, int]
) -> tuple[ResizeKind | None, int | None]:
    """How a Hugging Face processor resizes and the short side before a crop; (None, None): unknown.

    ``do_pad`` means another thing in each processor: below and at the right (DETR, OWLv2), to a
    multiple (DPT), among tiles (LLaVA-NeXT). Only LLaVA's own is a padding to a square in the
    middle.
    """
    to = given.get("size")
    crops = bool(given.get("do_center_crop"))
    if given.get("do_resize") is False or any(given.get(step) for step in _UNKNOWN_STEPS):
        return None, None
    if isinstance(to, Mapping) and to.get("longest_edge") is not None:
        return None, None
    shortest = to.get("shortest_edge") if isinstance(to, Mapping) else None
    if crops and isinstance(to, int):
        shortest = to
    if given.get("do_pad"):
        whole = size[0] == size[1] and (shortest is None or shortest == size[0])
        known = whole and name.startswith("LlavaImageProcessor")
        return ("pad" if known else None), None
    if shortest is not None:
        return "shortest", int(shortest)
    # A crop from a squashed picture has no name here.
    return ("squash" if _pair(to) == size else None), None


def _tilings_of(
    given: Mapping[str, Any], name: str, tile: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """The canvases of LLaVA-NeXT's processor; empty for all others.

    It resizes and crops tiles once more, which is known to change nothing only where tile, resize
    and crop are one square that divides the canvases.
    """
    to, pinpoints = given.get("size"), given.get("image_grid_pinpoints")
    if not (pinpoints and name.startswith("LlavaNextImageProcessor")):
        return ()
    shortest = to.get("shortest_edge") if isinstance(to, Mapping) else to
    canvases = tuple((int(height), int(width)) for height, width in pinpoints)
    whole = all(height % tile[0] == 0 and width % tile[1] == 0 for height, width in canvases)
    steps = all(given.get(step) is not False for step in ("do_resize", "do_center_crop"))
    return canvases if whole and steps and tile == (shortest, shortest) else ()


def from_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """Reads a timm ``pretrained_cfg``; None where it does not say mean, std and size."""
    mean, std, size = config.get("mean"), config.get("std"), config.get("input_size")
    if mean is None or std is None or size is None:
        return None
    height, width = int(size[-2]), int(size[-1])
    kinds: dict[str, ResizeKind] = {"squash": "squash", "center": "shortest"}
    return Preprocessing(
        _triple(mean),
        _triple(std),
        (height, width),
        kinds.get(str(config.get("crop_mode") or "center")),
        math.floor(min(height, width) / float(config.get("crop_pct") or 1.0)),
        _interpolation(config.get("interpolation")),
    )


def from_open_clip(config: Mapping[str, Any]) -> Preprocessing | None:
    """Reads open_clip's ``preprocess_cfg``; None where it does not say mean, std and size."""
    mean, std, size = config.get("mean"), config.get("std"), _pair(config.get("size"))
    if mean is None or std is None or size is None:
        return None
    kinds: dict[str, ResizeKind] = {"squash": "squash", "longest": "pad", "shortest": "shortest"}
    return Preprocessing(
        _triple(mean),
        _triple(std),
        size,
        kinds.get(str(config.get("resize_mode", "shortest"))),
        None,
        _interpolation(config.get("interpolation")),
    )


def _interpolation(name: Any) -> Interpolation:
    return name if name in ("bilinear", "lanczos") else "bicubic"


def _triple(values: Any) -> Triple:
    if isinstance(values, int | float):
        values = (values,) * 3
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _pair(size: Any) -> tuple[int, int] | None:
    """(H, W) from an int, a pair or a {"height", "width"} mapping; None from anything else."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
        if None in size:
            return None
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None

"""What timm and open_clip say in their configs of how pictures are prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipdepth_plugin.adapters.preprocessing import (
    Interpolation,
    Preprocessing,
    ResizeKind,
    pair,
    triple,
)


def from_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """Reads a timm ``pretrained_cfg``; None where it does not say mean, std and size."""
    mean, std, size = config.get("mean"), config.get("std"), config.get("input_size")
    if mean is None or std is None or size is None:
        return None
    height, width = int(size[-2]), int(size[-1])
    mode = str(config.get("crop_mode") or "center")
    resize = _kind_of(mode, {"squash": "squash", "center": "shortest"}, (height, width))
    return Preprocessing(
        triple(mean),
        triple(std),
        (height, width),
        resize,
        math.floor(min(height, width) / float(config.get("crop_pct") or 1.0)),
        _interpolation(config.get("interpolation")),
        unknown="" if resize else f"timm's crop_mode {mode!r} to {height} x {width}",
    )


def from_open_clip(config: Mapping[str, Any]) -> Preprocessing | None:
    """Reads open_clip's ``preprocess_cfg``; None where it does not say mean, std and size."""
    mean, std, size = config.get("mean"), config.get("std"), pair(config.get("size"))
    if mean is None or std is None or size is None:
        return None
    mode = str(config.get("resize_mode", "shortest"))
    resize = _kind_of(mode, {"squash": "squash", "longest": "fit", "shortest": "shortest"}, size)
    return Preprocessing(
        triple(mean),
        triple(std),
        size,
        resize,
        None,
        _interpolation(config.get("interpolation")),
        unknown="" if resize else f"open_clip's resize_mode {mode!r} to {size[0]} x {size[1]}",
    )


def _kind_of(
    mode: str, kinds: Mapping[str, ResizeKind], size: tuple[int, int]
) -> ResizeKind | None:
    """None where it is not known: both libraries resize in another way before an oblong crop."""
    kind = kinds.get(mode)
    return None if kind == "shortest" and size[0] != size[1] else kind


def _interpolation(name: Any) -> Interpolation:
    return name if name in ("bilinear", "lanczos") else "bicubic"

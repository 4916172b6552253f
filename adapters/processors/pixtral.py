"""Pixtral's and Mistral 3's resize to whole patches.

Sizes are (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.adapters.processors.registry import Read, register, sized
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry


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


@register("PixtralImageProcessor", options="patch_size")
def _whole_patches(given: Mapping[str, Any], processor: Any) -> Read:
    """Mistral 3's whole processor has the image processor round up to merged patches."""
    to = given["size"]
    longest = to.get("longest_edge") if isinstance(to, Mapping) else None
    limit = pair(int(longest)) if longest is not None else sized(given)
    patch = pair(given["patch_size"])
    whole = getattr(processor, "patch_size", None)
    if processor is not given and hasattr(processor, "image_processor") and whole is not None:
        patch = pair(int(whole) * int(getattr(processor, "spatial_merge_size", 1)))
    if limit is None or patch is None:
        raise KeyError("size or patch_size")
    if given.get("do_center_crop"):
        return Read(limit, unknown="do_center_crop=True")
    return Read(limit, view_rules=(WholePatches(limit, patch),))

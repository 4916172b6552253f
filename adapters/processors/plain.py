"""Image processors that make one view of an image: CLIP, SigLIP, ViT, LLaVA-1.5, PI0 ...

Every class that no other file registers is read here. ``do_pad`` means another thing in each (DETR:
below, DPT: to a multiple); only LLaVA's is known to be a padding to a square in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipdepth_plugin.adapters.preprocessing import pair
from clipdepth_plugin.adapters.processors.registry import Read, register
from clipdepth_plugin.adapters.processors.whole import Fit
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import HostError


@register()
def _plain(given: Mapping[str, Any], _: Any) -> Read:
    return _one_view(given, pads_to_square=False)


@register("LlavaImageProcessor")
def _llava(given: Mapping[str, Any], _: Any) -> Read:
    return _one_view(given, pads_to_square=True)


@register("Pix2StructImageProcessor", "Kosmos2_5ImageProcessor")
def _standardised(given: Mapping[str, Any], _: Any) -> Read:
    raise HostError(
        "it gives patches alone, of pictures that are each normalised by its own mean and "
        "deviation, which no setting says. Leave processor= out: maps at the tower's own input "
        "need none"
    )


def _one_view(given: Mapping[str, Any], *, pads_to_square: bool) -> Read:
    """Squash, or shortest side and crop, or padding."""
    to, name = given.get("size"), str(given.get("image_processor_type"))
    crops = bool(given.get("do_center_crop"))
    edges = to if isinstance(to, Mapping) else {}
    if "max_height" in edges and given.get("do_pad") and pair(given.get("pad_size")):
        return _fitted(edges, pair(given["pad_size"]) or (0, 0))
    size = (pair(given.get("crop_size")) if crops else None) or pair(to)
    if size is None:
        raise KeyError("size or crop_size")
    shortest = to if crops and isinstance(to, int) else edges.get("shortest_edge")
    if given.get("do_pad") or "longest_edge" in edges:
        square = size[0] == size[1] and (shortest is None or shortest == size[0])
        if pads_to_square and square and "longest_edge" not in edges:
            return Read(size, "pad")
        return Read(size, unknown=f"{name}: size={to}, do_pad={given.get('do_pad')}")
    if shortest is not None and crops and int(shortest) >= max(size):
        return Read(size, "shortest", int(shortest))
    if pair(to) == size:
        return Read(size, "squash")
    return Read(size, unknown=f"{name}: a crop to {size} of size={to}")


def _fitted(edges: Mapping[str, Any], size: Size) -> Read:
    if (edges["max_height"], edges.get("max_width")) == size:
        return Read(size, view_rules=(Fit(size, "start"),))
    return Read(size, unknown=f"size={dict(edges)} with pad_size={size}")

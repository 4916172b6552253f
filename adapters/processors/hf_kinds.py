"""Image processors of transformers whose arithmetic is their own: by the class's name.

Sizes are (H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from clipdepth_plugin.adapters.preprocessing import ResizeKind, pair
from clipdepth_plugin.adapters.processors.grids import (
    AspectGrid,
    CoveringGrid,
    ScaleGrid,
    TilesWhereLarge,
)
from clipdepth_plugin.adapters.processors.tiles import (
    AnyRes,
    LongestSideGrid,
    PaddedTiles,
    PanAndScan,
    Quarters,
)
from clipdepth_plugin.adapters.processors.view_rules import (
    MaxPatches,
    PadToSquare,
    SmartResize,
    WholePatches,
)
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.maps.tiling import ViewRule


@dataclasses.dataclass(frozen=True)
class Read:
    """How a processor resizes; the arguments of ``Preprocessing`` that say so."""

    size: Size
    resize: ResizeKind | None = None
    resize_to: int | None = None
    view_rules: tuple[ViewRule, ...] = ()
    unknown: str = ""


def _anyres(given: Mapping[str, Any], _: Any) -> Read:
    """LLaVA-NeXT resizes and crops tiles once more.

    That is known to change nothing only where tile, resize and crop are one square that divides
    the canvases.
    """
    crop = pair(given.get("crop_size")) if given.get("do_center_crop") is not False else None
    to = given["size"]
    resized = _square(to) if isinstance(to, Mapping) else pair(to)
    tile = crop or resized
    canvases = tuple((int(height), int(width)) for height, width in given["image_grid_pinpoints"])
    if tile is None:
        raise KeyError("size or crop_size")
    whole = all(height % tile[0] == 0 and width % tile[1] == 0 for height, width in canvases)
    if not whole or tile[0] != tile[1] or resized != tile:
        return Read(tile, unknown=f"size={to}, crop_size={crop} and canvases {canvases[:3]} ...")
    return Read(tile, view_rules=(AnyRes(tile, canvases),))


def _anyres_or_square(given: Mapping[str, Any], processor: Any) -> Read:
    """LLaVA-OneVision tiles an image that is alone in its prompt, and pads those that are not."""
    read = _anyres({**given, "do_center_crop": False}, processor)
    if given.get("do_center_crop") or not read.view_rules:
        return Read(read.size, unknown=read.unknown or "do_center_crop=True")
    return dataclasses.replace(read, view_rules=(*read.view_rules, PadToSquare(read.size)))


def _square(size: Mapping[str, Any]) -> Size | None:
    shortest = size.get("shortest_edge")
    return pair(int(shortest)) if shortest is not None else pair(size)


def _sized(given: Mapping[str, Any]) -> Size:
    size = pair(given["size"])
    if size is None:
        raise KeyError("size (height and width)")
    return size


def _aspect_grid(given: Mapping[str, Any], _: Any) -> Read:
    """Processors of whole hosts switch tiles on by the call, so both rules are always tried."""
    size = _sized(given)
    grid = AspectGrid(size, given.get("min_patches", 1), given.get("max_patches", 12))
    return Read(size, "squash", view_rules=(grid,))


def _covering_grid(given: Mapping[str, Any], _: Any) -> Read:
    size, most = _sized(given), int(given["max_patches"])
    if given.get("do_center_crop"):
        return Read(size, unknown="do_center_crop=True")
    if given.get("use_covering_area_grid", True):
        return Read(size, "squash", view_rules=(CoveringGrid(size, most),))
    grid = AspectGrid(size, int(given["min_patches"]), most, overview_first=True)
    return Read(size, "squash", view_rules=(grid,))


def _scale_grid(given: Mapping[str, Any], _: Any) -> Read:
    size = _sized(given)
    return Read(size, "squash", view_rules=(ScaleGrid(size, int(given["max_patches"])),))


def _tiles_where_large(given: Mapping[str, Any], _: Any) -> Read:
    """Splitting is an option of the call, too, so both rules are always tried."""
    patch, merged = int(given["encoder_patch_size"]), int(given["downsample_factor"])
    area = (patch * merged) ** 2
    bounds = [area * int(given[f"{end}_image_tokens"]) for end in ("min", "max")]
    whole = SmartResize(patch * merged, bounds[0], bounds[1], least=1)
    tiles = TilesWhereLarge(
        whole,
        patch,
        int(given["tile_size"]),
        int(given["min_tiles"]),
        int(given["max_tiles"]),
        float(given["max_pixels_tolerance"]),
        bool(given["use_thumbnail"]),
    )
    return dataclasses.replace(_largest(whole), view_rules=(tiles, whole))


_PAN_AND_SCAN: dict[str, Any] = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def _pan_and_scan(given: Mapping[str, Any], _: Any) -> Read:
    """As above; where the image processor is silent, Gemma3Processor's own defaults hold."""
    size = _sized(given)
    values = {key: given.get(key) or default for key, default in _PAN_AND_SCAN.items()}
    crops = PanAndScan(size, *values.values())
    return Read(size, "squash", view_rules=(crops,))


def _longest_side_grid(given: Mapping[str, Any], _: Any) -> Read:
    """SmolVLM's frames are never split; of its images both rules are tried, as above."""
    tile = int(given["max_image_size"]["longest_edge"])
    if "video_processor_type" in given:
        return Read((tile, tile), "squash")
    grid = LongestSideGrid(tile, int(given["size"]["longest_edge"]))
    return Read((tile, tile), "squash", view_rules=(grid,))


def _quarters(given: Mapping[str, Any], _: Any) -> Read:
    edges = given["size"]
    if not isinstance(edges, Mapping) or not {"shortest_edge", "longest_edge"} <= edges.keys():
        size = _sized(given)
        return Read(size, unknown=f"size={edges}")
    bounds = (int(edges["shortest_edge"]), int(edges["longest_edge"]))
    rules = (Quarters(*bounds, split=True), Quarters(*bounds, split=False))
    return Read((bounds[1], bounds[1]), view_rules=rules)


def _padded_tiles(given: Mapping[str, Any], _: Any) -> Read:
    size = _sized(given)
    return Read(size, view_rules=(PaddedTiles(size[0], int(given["max_image_tiles"])),))


def _whole_patches(given: Mapping[str, Any], processor: Any) -> Read:
    """Mistral 3's whole processor has the image processor round up to merged patches."""
    to = given["size"]
    longest = to.get("longest_edge") if isinstance(to, Mapping) else None
    limit = pair(int(longest)) if longest is not None else _sized(given)
    patch = pair(given["patch_size"])
    whole = getattr(processor, "patch_size", None)
    if processor is not given and hasattr(processor, "image_processor") and whole is not None:
        patch = pair(int(whole) * int(getattr(processor, "spatial_merge_size", 1)))
    if limit is None or patch is None:
        raise KeyError("size or patch_size")
    if given.get("do_center_crop"):
        return Read(limit, unknown="do_center_crop=True")
    return Read(limit, view_rules=(WholePatches(limit, patch),))


def _smart_resize(given: Mapping[str, Any], _: Any) -> Read:
    """Old files give ``min_pixels`` and ``max_pixels`` in place of the edges, which are areas."""
    edges = given.get("size") or {}
    factor = int(given["patch_size"]) * int(given["merge_size"])
    low = given.get("min_pixels") or edges.get("shortest_edge")
    high = given.get("max_pixels") or edges.get("longest_edge")
    if low is None or high is None:
        raise KeyError("size (shortest_edge and longest_edge)")
    return _largest(SmartResize(factor, int(low), int(high)))


def _max_patches(given: Mapping[str, Any], _: Any) -> Read:
    return _largest(MaxPatches(int(given["patch_size"]), int(given["max_num_patches"])))


def _largest(rule: ViewRule) -> Read:
    """Its size: what a square image becomes that is larger than any tower's input."""
    return Read(rule.views((1 << 14, 1 << 14)).views[0].view_size, view_rules=(rule,))


_LFM2_SPLIT = (
    "do_image_splitting min_tiles max_tiles tile_size use_thumbnail max_pixels_tolerance "
    "max_num_patches"
)

# By the beginning of the class's name: how it is read, and which settings that reads.
FAMILIES: dict[str, tuple[Callable[[Mapping[str, Any], Any], Read], str]] = {
    "LlavaNextImageProcessor": (_anyres, "image_grid_pinpoints"),
    "LlavaOnevisionImageProcessor": (_anyres_or_square, "image_grid_pinpoints"),
    "GotOcr2ImageProcessor": (_aspect_grid, "crop_to_patches min_patches max_patches"),
    "Ovis2ImageProcessor": (
        _covering_grid,
        "crop_to_patches min_patches max_patches use_covering_area_grid",
    ),
    "Cohere2VisionImageProcessor": (
        _scale_grid,
        "crop_to_patches min_patches max_patches patch_size",
    ),
    "Lfm2VlImageProcessor": (
        _tiles_where_large,
        f"{_LFM2_SPLIT} downsample_factor min_image_tokens max_image_tokens encoder_patch_size",
    ),
    "Gemma3ImageProcessor": (_pan_and_scan, f"do_pan_and_scan {' '.join(_PAN_AND_SCAN)}"),
    "Idefics2ImageProcessor": (_quarters, "do_image_splitting"),
    "Idefics3ImageProcessor": (_longest_side_grid, "do_image_splitting max_image_size"),
    "SmolVLMImageProcessor": (_longest_side_grid, "do_image_splitting max_image_size"),
    "SmolVLMVideoProcessor": (_longest_side_grid, "max_image_size"),
    "MllamaImageProcessor": (_padded_tiles, "max_image_tiles"),
    "PixtralImageProcessor": (_whole_patches, "patch_size"),
    "Qwen2VL": (
        _smart_resize,
        "patch_size temporal_patch_size merge_size min_pixels max_pixels min_frames max_frames",
    ),
    "Siglip2ImageProcessor": (_max_patches, "patch_size max_num_patches"),
}

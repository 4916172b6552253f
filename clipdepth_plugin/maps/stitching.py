"""One map of an image from the maps of its tiles: depth, or confidence.

Axes: H W the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.maps.geometry import of_numbers

# Share of a tile's shorter side over which it fades. Of 0, 1/16, 1/8 and 1/4 the last gave the
# demo's head the least error on test pictures of three sets, each cut into four.
_FADE = 0.25


def stitch(tiles: Sequence[Tensor], overview_1HW: Tensor | None = None) -> Tensor:
    """Pastes tiles of metres into one map (1, H, W); NaN where no view sees the image.

    A tile is a zoomed view, so its scale is unreliable: each is first multiplied by the median
    ratio of the overview to it, over the area both see, and then blended in log depth (in depth
    next to 0 m, which the ``relu`` activation can give).

    Args:
        tiles: (1, H, W) metres, none below 0, at the image's size each; NaN where the tile sees
            nothing (``ViewGeometry.to_image``).
        overview_1HW: The same of the view that shows the whole image.

    Returns:
        (1, H, W) float32 (of float64: float64).

    Raises:
        HostError: No tiles, not (1, H, W) of one size, or a tile beside the overview.
    """
    tiles, overview_1HW = _checked(tiles, overview_1HW)
    if overview_1HW is not None:
        tiles = [_rescaled(tile_1HW, overview_1HW, i) for i, tile_1HW in enumerate(tiles)]
    return _paste(tiles, overview_1HW, _between_logs)


def paste(tiles: Sequence[Tensor], overview_1HW: Tensor | None = None) -> Tensor:
    """Pastes tiles of any unit into one map, as they are; otherwise as ``stitch``.

    Each fades into what is below it, the overview and earlier tiles, towards those of its sides
    where the image goes on: no seams. Without an overview the later of two tiles is seen.
    """
    tiles, overview_1HW = _checked(tiles, overview_1HW)
    return _paste(tiles, overview_1HW, torch.lerp)


def _checked(
    tiles: Sequence[Tensor], overview_1HW: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    """As floats of one size, in which logarithms keep their digits."""
    if not isinstance(tiles, list | tuple):
        raise HostError(f"tiles are {quoted(tiles)}: expected a list of maps (1, H, W)")
    tiles = [of_numbers(tile, f"tile {i}", "(1, H, W)") for i, tile in enumerate(tiles)]
    if overview_1HW is not None:
        overview_1HW = of_numbers(overview_1HW, "the overview", "(1, H, W)")
    views = [*tiles] if overview_1HW is None else [overview_1HW, *tiles]
    sizes = {tuple(view.shape) for view in views}
    if len(sizes) != 1:
        raise HostError(
            f"one image's views have maps of sizes {sorted(sizes)}: expected one size, the image's"
        )
    return tiles, overview_1HW


def _rescaled(tile_1HW: Tensor, overview_1HW: Tensor, index: int) -> Tensor:
    seen_1HW = tile_1HW.isfinite()
    if not (bool(seen_1HW.any()) and bool(overview_1HW.isfinite().any())):
        return tile_1HW  # One of them is padding alone, or of one colour.
    both_1HW = seen_1HW & overview_1HW.isfinite()
    if not bool(both_1HW.any()):
        raise HostError(f"tile {index} and the overview share no area of the image")
    both_1HW &= (tile_1HW > 0) & (overview_1HW > 0)  # 0 m, of a ReLU, has no logarithm
    if not bool(both_1HW.any()):
        return tile_1HW
    ratio = (overview_1HW[both_1HW].log() - tile_1HW[both_1HW].log()).median().exp()
    return tile_1HW * ratio


def _between_logs(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    logs = torch.lerp(first.log(), second.log(), weight).exp()
    return torch.where((first > 0) & (second > 0), logs, torch.lerp(first, second, weight))


def _paste(
    tiles: Sequence[Tensor],
    overview_1HW: Tensor | None,
    between: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    first_1HW = tiles[0] if overview_1HW is None else overview_1HW
    whole_1HW = torch.full_like(first_1HW, torch.nan) if overview_1HW is None else first_1HW.clone()
    for tile_1HW in tiles:
        seen_1HW = tile_1HW.isfinite()
        if not bool(seen_1HW.any()):
            continue  # A tile of padding alone.
        pasted_1HW = tile_1HW
        if overview_1HW is not None:
            faded_1HW = between(whole_1HW, tile_1HW, _weight(seen_1HW))
            pasted_1HW = torch.where(whole_1HW.isfinite(), faded_1HW, tile_1HW)
        whole_1HW = torch.where(seen_1HW, pasted_1HW, whole_1HW)
    return whole_1HW


def _weight(seen_1HW: Tensor) -> Tensor:
    """(H, W) how much a tile counts: 1 in its middle, less where the image goes on."""
    rows, columns = (seen_1HW[0].any(dim=axis).nonzero().flatten() for axis in (1, 0))
    band = _FADE * min(len(rows), len(columns))
    ramps = []
    for size, inside in ((seen_1HW.shape[1], rows), (seen_1HW.shape[2], columns)):
        first, last = int(inside[0]), int(inside[-1]) + 1
        centres = torch.arange(size, dtype=torch.float32, device=seen_1HW.device) + 0.5
        ramp = torch.ones_like(centres)
        if first > 0:
            ramp = torch.minimum(ramp, (centres - first) / band)
        if last < size:
            ramp = torch.minimum(ramp, (last - centres) / band)
        ramps.append(ramp.clamp(0, 1))
    return torch.minimum(ramps[0][:, None], ramps[1][None])

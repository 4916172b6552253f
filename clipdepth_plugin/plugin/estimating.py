"""A head on the features of a pass: whether it may run there, and whether its depth is sound.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.arrays import ONE_COLOUR
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.errors import HeadMismatchError, NoDepthError
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.precision import without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.head import FusedHead  # brings triton in
    from clipdepth_plugin.head import DepthHead


def estimates(head: DepthHead | FusedHead, batches: Sequence[TowerFeatures]) -> list[DepthEstimate]:
    """What a head gives at its native size for each batch of views, without a graph."""
    if head.training:
        raise HeadMismatchError(
            "the head is in training mode, where reading depth would change its batch norms: "
            "call head.eval() (or plugin.eval()) first; to train, call plugin(pixels) or "
            "head(features)"
        )
    with torch.no_grad():
        moved = [on_heads_device(one, head) for one in batches]
        with without_autocast(next(iter(moved[0].levels.values())).device):
            if head.config.confidence:
                natives = [head.estimate(one) for one in moved]
            else:  # by the head's own call, which the user may have hooked
                natives = [DepthEstimate(head(one)) for one in moved]
    return natives


def check_finite(maps: Sequence[Tensor], ranges: Sequence[Tensor] = ()) -> list[int]:
    """Whether the depth of every view is finite; waits for the device once.

    Returns:
        The views of one colour, by their ``ranges`` (``TowerPass.pixel_ranges``).
    """
    # One pass over the maps: a sum is finite only where all of it is.
    sums = torch.stack([one_B1HW.sum() for one_B1HW in maps])
    found = torch.cat([sums, *[range_B.to(sums) for range_B in ranges]]).tolist()
    if not math.isfinite(sum(found[: len(maps)])):
        _refuse_infinite(maps)
    return [view for view, reach in enumerate(found[len(maps) :]) if reach <= ONE_COLOUR]


def without_depth(native: DepthEstimate, range_B: Tensor) -> DepthEstimate:
    """NaN for the views of one colour, by the ranges of their pixels."""
    depth, log_scale = native.depth, native.log_scale
    empty_B111 = (range_B.to(depth) <= ONE_COLOUR)[:, None, None, None]
    if log_scale is not None:
        log_scale = log_scale.masked_fill(empty_B111, torch.nan)
    return DepthEstimate(depth.masked_fill(empty_B111, torch.nan), log_scale)


def findings(depth_B1HW: Tensor, ranges: Sequence[Tensor]) -> Tensor:
    """(1 or 2, B) for ``judged``: whether views are finite; ``ranges``, at most one, if known.

    For graphs: nothing waits for the device.
    """
    finite_B = depth_B1HW.isfinite().flatten(1).all(dim=1)
    return torch.stack([x.to(torch.float32) for x in (finite_B, *ranges)])


def judged(found: Tensor) -> list[int]:
    """As ``check_finite``, by ``findings``."""
    finite, *reaches = found.tolist()
    if 0 in finite:
        _refuse([view for view, is_finite in enumerate(finite) if not is_finite])
    return [view for view, reach in enumerate(*reaches) if reach <= ONE_COLOUR] if reaches else []


def _refuse_infinite(maps: Sequence[Tensor]) -> None:
    """Raises where a view is not finite; a sum may overflow where all are."""
    finite_B = torch.cat([one_B1HW.isfinite().flatten(1).all(dim=1) for one_B1HW in maps])
    if not bool(finite_B.all()):
        _refuse((~finite_B).nonzero().flatten().tolist())


def _refuse(views: list[int]) -> NoReturn:
    raise NoDepthError(
        f"the depth of views {views} is not finite: NaN or infinite pixels or weights, or a "
        "tower that overflows in half precision (run it in bfloat16 or float32)"
    )


def device_of(module: nn.Module) -> torch.device | None:
    """Of its first parameter; ``next(module.parameters())`` goes through a list of all modules."""
    for name in module._parameters:
        parameter = module._parameters[name]
        if parameter is not None:
            return parameter.device
    for name in module._modules:
        child = module._modules[name]
        if child is not None and (device := device_of(child)) is not None:
            return device
    return None


def on_heads_device(features: TowerFeatures, head: DepthHead | FusedHead) -> TowerFeatures:
    """Features on the head's device, for towers that are spread over several."""
    device = device_of(head)
    for x in (*features.levels.values(), features.context, features.pixels):
        if x is not None and x.device != device:
            break
    else:
        return features
    devices = {x_BND.device for x_BND in features.levels.values()}
    if device not in devices:
        elsewhere = str(next(iter(devices)))
        raise HeadMismatchError(
            f"the head is on {device}, the tower on {elsewhere}: head.to({elsewhere!r})"
        )
    return features.mapped(lambda x: x.to(device))

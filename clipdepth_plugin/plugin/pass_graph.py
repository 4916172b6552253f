"""From a pass's raw tokens to its maps in one CUDA graph: layout, head, checks and resize.

The graph's inputs are the blocks' outputs as they came, prefix tokens too: whole and of one dtype,
so that one kernel copies all of them. Nothing waits for the device before all of it is launched.

Axes: B views, H W a map's size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipdepth_plugin.adapters.layouts import PlainLayout
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.decoders.readout import DepthEstimate
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.maps.placing import at_pixels
from clipdepth_plugin.plugin.estimating import device_of, findings, judged, without_depth
from clipdepth_plugin.precision import without_autocast

if TYPE_CHECKING:
    from clipdepth_plugin.fused.graphs import GraphCache
    from clipdepth_plugin.fused.head import FusedHead
    from clipdepth_plugin.head import DepthHead


Finished = tuple[list[DepthEstimate], list[Tensor] | None, list[int]]
"""A pass's maps: the head's own of each of its ``views``; their depth at the tower's input, None:
not yet; the views of one colour."""


def graphs_of(head: DepthHead | FusedHead) -> GraphCache | None:
    """Where a head keeps its CUDA graphs; None where it has none."""
    return getattr(head, "graphs", None)


def finished_in_graph(
    one: TowerPass, head: DepthHead | FusedHead, graphs: GraphCache | None
) -> Finished | None:
    """A pass's maps by the head's graphs; None where this pass can't be recorded.

    It can where its tokens are rows, by a layout that follows from shapes, on the head's GPU, and
    nobody has hooked the head.

    Raises:
        NoDepthError: As ``TowerPass.features``; or the depth is not finite.
    """
    if graphs is None or head.training or head._forward_hooks or head._forward_pre_hooks:
        return None
    tensors, layout = one.tapped(), one.layout_of_shapes
    if layout.__class__ is not PlainLayout or not graphs.applies(tensors):
        return None
    if tensors[0].device != device_of(head):
        return None
    # All else that decides what is computed is the head's, whose graphs these are.
    kind = (layout.key, one.wanted.tower.patch_size)
    found, placed_B1HW, depth_B1HW, *scales = graphs.run_recorded(
        kind, tensors, functools.partial(_finish, one, head)
    )
    native = DepthEstimate(depth_B1HW, scales[0] if scales else None)
    placed = None if placed_B1HW is depth_B1HW else [placed_B1HW]
    return [native], placed, judged(found)


def _finish(one: TowerPass, head: DepthHead | FusedHead, tensors: list[Tensor]) -> list[Tensor]:
    """``findings``; depth at the tower's input; the head's own maps. Of a pass's raw tensors."""
    given = one.of(tensors)
    with torch.no_grad(), without_autocast(tensors[0].device):
        (features,), ranges = given.batches, given.pixel_ranges()
        native = launched(head, features)
        found = findings(native.depth, ranges)
        for range_B in ranges:
            native = without_depth(native, range_B)
        placed = at_pixels([native.depth], given.views, given.tower.patch_size)
    return [found, *placed, *[x for x in native[:2] if isinstance(x, Tensor)]]


def launched(head: DepthHead | FusedHead, features: TowerFeatures) -> DepthEstimate:
    """What a head gives, by no graph of its own: to be recorded with what is around it."""
    estimate: Callable[[TowerFeatures], DepthEstimate]
    estimate = getattr(head, "estimate_without_graph", head.estimate)
    return estimate(features)

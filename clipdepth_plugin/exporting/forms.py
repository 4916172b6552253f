"""Other forms of a graph's operations, which onnxruntime runs in less time on a CPU.

Axes: B views, C channels, H W a map's size, Y X the fine positions within a coarse one.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_LARGEST_SHARE = 0.25
"""Of the tokens, that is computed in vain to save a copy of the others."""


def with_fast_forms(module: fx.GraphModule) -> fx.GraphModule:
    """The module, changed: pixel shuffles by two transposes, prefix tokens cut off when narrow."""
    for node in list(module.graph.nodes):
        if node.target == _aten.pixel_shuffle.default:
            node.target = pixel_shuffle
        elif node.target == _aten.slice.Tensor and _drops_few_tokens(node):
            _cut_later(node)
    module.recompile()
    return module


def pixel_shuffle(x_BCHW: Tensor, factor: int) -> Tensor:
    """As torch's, by two transposes: of columns, then of rows.

    DepthToSpace, one transpose of six axes, takes onnxruntime twice as long. The axes between both
    are merged, else exporters join the two.
    """
    channels, height, width = x_BCHW.shape[1:]
    columns = x_BCHW.reshape(-1, channels // factor, factor, height * width).transpose(2, 3)
    rows = columns.reshape(-1, channels // factor**2, factor, height, width * factor)
    return rows.transpose(2, 3).reshape(-1, channels // factor**2, height * factor, width * factor)


def _drops_few_tokens(cut: fx.Node) -> bool:
    whole, *where = cut.args
    assert isinstance(whole, fx.Node)
    before, after = (node.meta["val"].shape for node in (whole, cut))
    axis = len(before) - 2
    if axis < 1 or where[:1] != [axis]:
        return False
    return bool(before[axis] - after[axis] <= _LARGEST_SHARE * before[axis])


def _cut_later(cut: fx.Node) -> None:
    """Moves a slice of tokens behind what takes each of them alone: what it copies is narrower."""
    whole, *where = cut.args
    assert isinstance(whole, fx.Node)
    for user in list(cut.users):
        if user.target == _aten._assert_tensor_metadata.default:
            user.replace_input_with(cut, whole)
        elif _takes_each_alone(user, cut):
            user.replace_input_with(cut, whole)
            with user.graph.inserting_after(user):
                later = user.graph.call_function(_aten.slice.Tensor, (user, *where))
            user.replace_all_uses_with(later)
            later.args = (user, *where)  # it was replaced there, too
            _cut_later(later)
    if not cut.users:
        cut.graph.erase_node(cut)


def _takes_each_alone(user: fx.Node, tokens: fx.Node) -> bool:
    """Casts, norms over the width, and projections."""
    if user.target == _aten.layer_norm.default:
        normed = user.args[1]
        return isinstance(normed, list | tuple) and len(normed) == 1
    return user.target in (_aten.to.dtype, _aten.linear.default) and user.args[0] is tokens

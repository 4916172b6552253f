"""An op at one place of a head, beside the modules of the plain head that it stands for.

The inputs are those that the modules have in a pass of the head.

Axes: B views, C channels, H W a map's size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.forms import Packing
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.kernels.launch import channels_last
from clipdepth_plugin.latency.kernel_cases import Bound, Case, cast, picture_size, tensors_of

Function = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """An op before its dtype is chosen.

    Attributes:
        name: As in ``ops``.
        place: Which of a head's places.
        arguments: Its inputs in a float32 pass.
        plain: The plain head's own way there, from its decoder.
        fused: The op with its weights, packed from that decoder.
        float32: Positions of inputs that the fused op takes in float32, whatever its dtype.
    """

    name: str
    place: str
    arguments: tuple[Any, ...]
    plain: Callable[[Any], Function]
    fused: Callable[[Any, Packing], Function]
    float32: frozenset[int] = frozenset()


def op_case(op: Op, decoder: nn.Module, device: torch.device) -> Case:
    """The op, at batch 1, on the device that the decoder is on."""

    def plain(dtype: torch.dtype) -> Bound:
        own = copy.deepcopy(decoder).to(dtype)
        return Bound(op.plain(own), cast(op.arguments, dtype, device))

    def fused(dtype: torch.dtype) -> Bound:
        # On a GPU the kernel is asked for by name: it runs or says why it can't.
        packing = Packing(dtype, True if device.type == "cuda" else None)
        given = tuple(
            cast(x, torch.float32 if i in op.float32 else dtype, device)
            for i, x in enumerate(op.arguments)
        )
        return Bound(op.fused(decoder, packing), _maps_channels_last(given))

    return Case(
        name=op.name,
        kind="op",
        place=f"{op.place}: {_shapes(op.arguments)}",
        batch=1,
        plain=plain,
        fused=fused,
        graph=lambda dtype: fused(dtype).recorded(),
    )


def inputs_of(
    head: DepthHead, features: TowerFeatures, modules: Mapping[str, nn.Module]
) -> dict[str, tuple[Any, ...]]:
    """What the modules are given in a pass of the head."""
    seen: dict[str, tuple[Any, ...]] = {}

    def keep(name: str, given: tuple[Any, ...]) -> None:
        seen[name] = given

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, given: keep(name, given)

    handles = [m.register_forward_pre_hook(hook_of(name)) for name, m in modules.items()]
    try:
        head(features, picture_size(features.grid))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _maps_channels_last(arguments: Any) -> Any:
    """As a fused head's maps come."""
    return tree_map(
        lambda x: channels_last(x) if isinstance(x, Tensor) and x.ndim == 4 else x, arguments
    )


def _shapes(arguments: Any) -> str:
    shapes = [" x ".join(map(str, x.shape)) for x in tensors_of(arguments)]
    return ", ".join(
        f"{shapes.count(shape)} of {shape}" if shapes.count(shape) > 1 else shape
        for shape in dict.fromkeys(shapes)
    )

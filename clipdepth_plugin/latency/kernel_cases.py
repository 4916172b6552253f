"""What ``clipdepth bench kernels`` compares: a plain module and its fused form, on one input.

Weights and features are random; the norms' statistics are those of the features, as training would
have left them, so that no map is dead and a wrong number shows.

Axes: B views, N patch tokens, D tower width, h w the patch grid, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.features import TowerFeatures
from clipdepth_plugin.fused.graphs import record_cuda
from clipdepth_plugin.head import DepthHead

PATCH = 16
"""Pixels of a patch's side: heads give maps of the size of the picture."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A function and its arguments.

    Attributes:
        function: A module or a function of tensors.
        arguments: Tensors, at any depth, and sizes.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Its value."""
        return self.function(*self.arguments)

    def recorded(self) -> Callable[[], object]:
        """The same in a CUDA graph; what it gives is overwritten by the next call."""
        recording = record_cuda(lambda: tensors_of(self()), tensors_of(self.arguments))

        def replay() -> object:
            recording.replay()
            return recording.outputs

        return replay


@dataclass(frozen=True)
class Case:
    """An op at one place of a head, or a whole head.

    Attributes:
        name: The op's, or the preset's.
        kind: Which of the two.
        place: Where it stands, and the shapes of its inputs.
        batch: B.
        plain: The plain module in a dtype, with its inputs.
        fused: The fused form of the same weights, with its inputs.
        graph: The fused form in a CUDA graph.
        parameters: Of a whole head, without auxiliary outputs; None for an op.
    """

    name: str
    kind: Literal["head", "op"]
    place: str
    batch: int
    plain: Callable[[torch.dtype], Bound]
    fused: Callable[[torch.dtype], Bound]
    graph: Callable[[torch.dtype], Callable[[], object]]
    parameters: int | None = None


def random_features(config: HeadConfig, grid: tuple[int, int], batch: int) -> TowerFeatures:
    """Tokens as hooks give them: slices behind a prefix token; float32, on the CPU."""
    draws = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    tokens = 1 + grid[0] * grid[1]
    levels = {k: random(batch, tokens, config.width)[:, 1:] for k in config.levels}
    context = random(batch, config.width) if config.film else None
    pixels = random(batch, 3, *picture_size(grid)) if config.reads_pixels else None
    return TowerFeatures(levels, context, grid, pixels)


def random_head(config: HeadConfig, grid: tuple[int, int]) -> DepthHead:
    """A head in eval mode, alive and with norms that do something, as a trained one's."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        head = DepthHead(config)
        for parameter in head.parameters():
            if not parameter.any():  # a layer that begins as the identity hides what is in it
                parameter.normal_(std=0.1)
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        head.train()(random_features(config, grid, batch=2))
    return head.eval()


def head_case(
    name: str, head: DepthHead, grid: tuple[int, int], batch: int, device: torch.device
) -> Case:
    """A whole head, from tokens to metres at the picture's size."""
    features = random_features(head.config, grid, batch)

    def bound(make: Callable[[torch.dtype], nn.Module]) -> Callable[[torch.dtype], Bound]:
        return lambda dtype: Bound(make(dtype), (cast(features, dtype, device), picture_size(grid)))

    height, width = picture_size(grid)
    return Case(
        name=name,
        kind="head",
        place=f"{len(head.config.levels)} levels of {grid[0]} x {grid[1]} tokens, width "
        f"{head.config.width}, to {height} x {width}",
        batch=batch,
        plain=bound(lambda dtype: copy.deepcopy(head).to(dtype)),
        fused=bound(lambda dtype: head.fused(dtype, graphs=0)),
        graph=bound(head.fused),
        parameters=sum(
            parameter.numel()
            for name, parameter in head.named_parameters()
            if not name.startswith("decoder.auxiliary.")
        ),
    )


def picture_size(grid: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the picture."""
    return PATCH * grid[0], PATCH * grid[1]


def tensors_of(values: Any) -> list[Tensor]:
    """Tensors at any depth."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def cast(values: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Tensors at any depth in another dtype and place, their strides kept."""
    return tree_map(lambda x: x.to(device, dtype) if isinstance(x, Tensor) else x, values)

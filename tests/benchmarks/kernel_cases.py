"""Cases of the kernel benchmark: whole heads, and ops with the inputs that a fused head gives them.

Weights and features are random. The norms' statistics are those of the features, so that no map
is dead and a wrong number shows.

Axes: h w the patch grid, H W pixels.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from clipdepth_plugin import DepthHead, HeadConfig, ops
from clipdepth_plugin.fused.graphs import record_cuda
from tests.tiny.fused_heads import make_features

PATCH = 16
"""Pixels of a patch's side: heads give maps of the size of the picture."""
OPS = tuple(name for name in ops.__all__ if name != "use_triton")


@dataclass(frozen=True, slots=True)
class Bound:
    """A function and its arguments: tensors at any depth, and sizes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        return self.function(*self.arguments, **self.options)


@dataclass(frozen=True)
class Case:
    """An op, or a whole head.

    Attributes:
        name: The op's, or the preset's.
        place: The head, and the shapes of its inputs.
        is_op: Whether its fused form is a Triton kernel and nothing else.
        exact: The plain form in float64, on the inputs of a dtype.
        plain: The plain form in a dtype: the module of a head, the reference of an op.
        fused: The fused form in a dtype.
        graph: The fused form in a CUDA graph.
        on_cuda: Whether it runs on a GPU.
    """

    name: str
    place: str
    is_op: bool
    exact: Callable[[torch.dtype], Bound]
    plain: Callable[[torch.dtype], Bound]
    fused: Callable[[torch.dtype], Bound]
    graph: Callable[[torch.dtype], Callable[[], object]]
    on_cuda: bool = False

    def form(self, name: str) -> Callable[[torch.dtype], Callable[[], object]]:
        """What makes a form of that name."""
        made: Callable[[torch.dtype], Callable[[], object]]
        made = self._plain_graph if name == "plain-graph" else getattr(self, name)
        return made

    def _plain_graph(self, dtype: torch.dtype) -> Callable[[], object]:
        return recorded(self.plain(dtype))


def head_case(name: str, head: DepthHead, grid: tuple[int, int], batch: int) -> Case:
    """A whole head, from tokens to metres at the picture's size."""
    device, size = next(head.parameters()).device, picture_size(grid)
    features = make_features(head, grid, batch)

    def bound(module: nn.Module, dtype: torch.dtype) -> Bound:
        given = tree_map(lambda x: _cast(x, dtype, device), features)
        return Bound(module, (given, size))

    def plain(dtype: torch.dtype) -> Bound:
        return bound(copy.deepcopy(head).to(dtype), dtype)

    return Case(
        name=f"{name}, batch {batch}",
        place=f"{len(head.config.levels)} levels of {grid[0]} x {grid[1]} tokens, width "
        f"{head.config.width}, to {size[0]} x {size[1]}",
        is_op=False,
        exact=lambda _: plain(torch.float64),
        plain=plain,
        fused=lambda dtype: bound(head.fused(dtype, graphs=0), dtype),
        graph=lambda dtype: bound(head.fused(dtype), dtype),
        on_cuda=device.type == "cuda",
    )


def recorded(call: Bound) -> Callable[[], object]:
    """A call as a CUDA graph, on its own inputs."""
    recording = record_cuda(lambda: tensors_of(call()), tensors_of((call.arguments, call.options)))

    def replay() -> object:
        recording.replay()
        return recording.outputs

    return replay


def op_cases(name: str, head: DepthHead, grid: tuple[int, int]) -> Iterator[Case]:
    """Every op that a fused head calls, at its largest call."""

    @functools.cache
    def calls(dtype: torch.dtype) -> dict[str, Bound]:
        return largest_calls(head, grid, dtype)

    for op, sample in calls(torch.float32).items():
        shapes = dict.fromkeys(" x ".join(map(str, x.shape)) for x in tensors_of(sample.arguments))
        yield _op_case(op, f"{name}: {', '.join(shapes)}", calls)


def _op_case(op: str, place: str, calls: Callable[[torch.dtype], dict[str, Bound]]) -> Case:
    def bound(dtype: torch.dtype, *, triton: bool) -> Bound:
        call = calls(dtype)[op]
        return Bound(call.function, call.arguments, {**call.options, "triton": triton})

    def exact(dtype: torch.dtype) -> Bound:
        call = bound(dtype, triton=False)
        given = (call.arguments, call.options)
        arguments, options = tree_map(lambda x: _cast(x, torch.float64), given)
        return Bound(call.function, arguments, options)

    def graph(dtype: torch.dtype) -> Callable[[], object]:
        return recorded(bound(dtype, triton=True))

    def plain(dtype: torch.dtype) -> Bound:
        return bound(dtype, triton=False)

    def fused(dtype: torch.dtype) -> Bound:
        return bound(dtype, triton=True)

    on_cuda = tensors_of(calls(torch.float32)[op].arguments)[0].is_cuda
    return Case(op, place, True, exact, plain, fused, graph, on_cuda)


def largest_calls(head: DepthHead, grid: tuple[int, int], dtype: torch.dtype) -> dict[str, Bound]:
    """Op -> its call with the largest inputs in a pass of the fused head."""
    device, found = next(head.parameters()).device, dict[str, Bound]()

    def recorded(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            call = Bound(op, arguments, {**options, "triton": False})
            if name not in found or _numel(call) > _numel(found[name]):
                found[name] = call
            return call()

        return run

    fused = head.fused(dtype, triton=True, graphs=0)  # takes the ops' way, which run() redirects
    features = tree_map(lambda x: _cast(x, dtype, device), make_features(head, grid, 1))
    with torch.no_grad(), ExitStack() as stack:
        for name in OPS:
            stack.enter_context(mock.patch.object(ops, name, recorded(name, getattr(ops, name))))
        fused(features, picture_size(grid))
    return found


def random_head(config: HeadConfig, grid: tuple[int, int]) -> DepthHead:
    """A head in eval mode without dead layers, its norms' statistics those of its features."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        head = DepthHead(config)
        for parameter in head.parameters():
            if not parameter.any():  # a layer that starts as the identity hides what is in it
                parameter.normal_(std=0.1)
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        head.train()(make_features(head, grid))
    return head.eval()


def picture_size(grid: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the picture."""
    return PATCH * grid[0], PATCH * grid[1]


def tensors_of(values: Any) -> list[Tensor]:
    """Tensors at any depth."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _numel(call: Bound) -> int:
    return sum(x.numel() for x in tensors_of(call.arguments))


def _cast(x: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    return x.to(device or x.device, dtype) if isinstance(x, Tensor) else x

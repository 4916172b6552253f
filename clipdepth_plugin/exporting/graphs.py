"""What is exported: tower and head as one graph, and the head alone; plain tensors in and out.

Axes: B views, N patch tokens, D tower width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import ExportError
from clipdepth_plugin.exporting.constants import with_constants
from clipdepth_plugin.exporting.forms import with_fast_forms
from clipdepth_plugin.maps.alignment import inverse_of
from clipdepth_plugin.plugin.depth_tower import DepthTower

MOST = 64
"""Pictures in a batch, where their number is dynamic."""
PIXELS, FOCAL, CONTEXT = "pixel_values", "focal_px", "context"
DEPTH, CONFIDENCE = "depth", "confidence"

Inputs = Sequence[Tensor]
Run = Callable[[Inputs], list[Tensor]]
"""A graph, however it is run: its inputs and outputs in order."""


class TowerGraph(nn.Module):
    """A DepthTower: pixels, and focal lengths where its head takes them."""

    stem = "tower_depth"

    def __init__(self, depth_tower: DepthTower) -> None:
        super().__init__()
        self.depth_tower = depth_tower
        config = depth_tower.level_head.config
        self.metric = config.metric
        self.input_names = (PIXELS, FOCAL) if _takes_focal(config) else (PIXELS,)
        self.output_names = depth_tower.output_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs in order; relative depth as inverse depth."""
        seen, depth_B1HW, *confidence = self.depth_tower(*inputs)
        return (*seen.values(), _in_units(depth_B1HW, metric=self.metric), *confidence)

    def inputs_of(self, pixels_B3HW: Tensor, focal_B: Tensor) -> tuple[Tensor, ...]:
        """What it takes for such pictures."""
        return (pixels_B3HW, focal_B)[: len(self.input_names)]


class TowerAlone(TowerGraph):
    """The same without its head: what depth is compared with."""

    stem = "tower"

    def __init__(self, depth_tower: DepthTower) -> None:
        super().__init__(depth_tower)
        self.input_names = (PIXELS,)
        self.output_names = tuple(x for x in self.output_names if x not in (DEPTH, CONFIDENCE))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the host reads of its tower."""
        seen, _ = self.depth_tower.vision(inputs[0])
        return tuple(seen.values())


class HeadGraph(nn.Module):
    """A LevelHead: patch tokens of each level, context, pixels and focal lengths, as it reads."""

    stem = "head"

    def __init__(self, depth_tower: DepthTower) -> None:
        super().__init__()
        self.level_head = depth_tower.level_head
        self._depth_tower = (depth_tower,)  # no submodule: the head has no tower
        config = self.level_head.config
        self.metric = config.metric
        self._takes = (config.film, config.reads_pixels, _takes_focal(config))
        others = zip((CONTEXT, PIXELS, FOCAL), self._takes, strict=True)
        self.levels = self.level_head.levels
        names = (name for name, given in others if given)
        self.input_names = (*map("level_{}".format, self.levels), *names)
        self.output_names = (DEPTH, CONFIDENCE) if config.confidence else (DEPTH,)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Depth, and confidence where there is one."""
        levels, rest = inputs[: len(self.levels)], iter(inputs[len(self.levels) :])
        context, pixels, focal = (next(rest) if given else None for given in self._takes)
        depth_B1HW, *confidence = self.level_head(levels, context, pixels, focal)
        return (_in_units(depth_B1HW, metric=self.metric), *confidence)

    def inputs_of(self, pixels_B3HW: Tensor, focal_B: Tensor) -> tuple[Tensor, ...]:
        """What it takes for such pictures: the tower runs here."""
        (depth_tower,) = self._depth_tower
        _, run = depth_tower.vision(pixels_B3HW)
        (features,) = run.batches
        levels = [features.levels[level].contiguous() for level in self.levels]
        others = zip((features.context, features.pixels, focal_B), self._takes, strict=True)
        return (*levels, *(x for x, given in others if given and x is not None))


Graph = TowerGraph | HeadGraph


@dataclass(frozen=True)
class Exported:
    """A graph as a program of torch.export.

    Attributes:
        graph: What was exported, in the dtype of the program.
        program: The program: inputs and outputs are those of ``graph``, in order.
        example: Inputs that it was exported with.
        dynamic_batch: Whether the number of pictures is dynamic.
    """

    graph: Graph
    program: ExportedProgram
    example: tuple[Tensor, ...]
    dynamic_batch: bool


def export_graph(graph: Graph, example: Inputs, *, dynamic_batch: bool) -> Exported:
    """Exports a graph; what follows from the weights alone becomes a constant of it.

    Args:
        graph: In evaluation mode, in the dtype that is wanted.
        example: Its inputs, of one picture.
        dynamic_batch: Take 1 to ``MOST`` pictures, not one.

    Raises:
        ExportError: torch.export can't make one graph of it.
    """
    axes, given = None, tuple(example)
    if dynamic_batch:
        axes = tuple({0: Dim("batch", min=1, max=MOST)} for _ in given)
        given = tuple(torch.cat([x, x]) for x in given)
    try:
        with torch.no_grad():
            whole = axes and (axes,)  # all inputs are one ``*inputs``
            program = torch.export.export(graph, given, dynamic_shapes=whole)
            module = with_fast_forms(with_constants(program))
            program = torch.export.export(module, given, dynamic_shapes=axes)
    except Exception as error:  # torch.export and the towers in it raise almost anything
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise ExportError(
            f"{graph.stem}: torch.export can't make one graph of it "
            f"({type(error).__name__}: {first})"
        ) from error
    return Exported(graph, program, given, dynamic_batch)


def cast(inputs: Inputs, names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs in the dtype of a file; focal lengths stay float32."""
    dtypes = [torch.float32 if name == FOCAL else dtype for name in names]
    return tuple(x.to(own) for x, own in zip(inputs, dtypes, strict=True))


def _takes_focal(config: HeadConfig) -> bool:
    return config.metric and config.canonical_focal is not None


def _in_units(depth_B1HW: Tensor, *, metric: bool) -> Tensor:
    return depth_B1HW if metric else inverse_of(depth_B1HW)

"""What an export is asked for, and what its files are made of: checked before anything is written.

Axes: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import ClipDepthError, ExportError, shortened
from clipdepth_plugin.exporting.framed import as_written
from clipdepth_plugin.exporting.graphs import Graph, HeadGraph, TowerAlone, TowerGraph
from clipdepth_plugin.exporting.verifying import DTYPES
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.depth_tower import DepthTower
from clipdepth_plugin.plugin.pictures import PictureDepth

OPSETS = (18, 23)
"""Of ONNX, that torch's exporter writes."""
OPSET = 20
"""The newest that TensorRT 10.0 reads; Gelu is one operator from it on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What ``export`` makes.

    Attributes:
        formats: Names of ``FORMATS``: onnx, pt2, aoti.
        dtype: Of weights, tokens and pixels: float32, float16, bfloat16. Depth is float32.
        size: (H, W) of the tower's input; None: as the head was trained, or the host's.
        dynamic_batch: 1 to 64 pictures, not one.
        opset: Of ONNX; None: ``OPSET``.
        tower: Module path of the tower, where the host has several.
        other_tower: As ``attach``.
        tower_alone: Also write the tower without depth, which ``clipdepth bench`` compares with.
        host_name: What the card calls the host.
        head_name: What the card calls the head.
    """

    formats: tuple[str, ...] = ("onnx",)
    dtype: str = "float32"
    size: Size | None = None
    dynamic_batch: bool = False
    opset: int | None = None
    tower: str | None = None
    other_tower: bool = False
    tower_alone: bool = False
    host_name: str | None = None
    head_name: str | None = None

    @property
    def onnx_opset(self) -> int:
        """That of ONNX files."""
        return OPSET if self.opset is None else self.opset


@dataclass(frozen=True)
class Plan:
    """All that the files are made of.

    Attributes:
        settings: What is asked for.
        tower: The tower, as the host has it.
        framing: How pictures become its input.
        references: The graphs, in float32.
        graphs: The same in the dtype of the files.
    """

    settings: ExportSettings
    tower: Tower
    framing: Preprocessing
    references: tuple[Graph, ...]
    graphs: tuple[Graph, ...]

    @property
    def depth_tower(self) -> DepthTower:
        """The module of the first reference."""
        (first, *_) = self.references
        assert isinstance(first, TowerGraph)
        return first.depth_tower

    @property
    def focal_px(self) -> float:
        """The canonical focal length at the tower's input; 1 where there is none."""
        return self.depth_tower.level_head.config.focal_at(self.framing.size) or 1.0


def make_plan(host: nn.Module, head: DepthHead, processor: Any, settings: ExportSettings) -> Plan:
    """Finds the tower, and builds its graphs; raises as ``export``."""
    if settings.dtype not in DTYPES:
        raise ExportError(f"dtype {settings.dtype}: expected one of {', '.join(DTYPES)}")
    if settings.opset is not None and "onnx" not in settings.formats:
        raise ExportError(f"opset {settings.opset}: nothing is written as ONNX; leave it out")
    if not OPSETS[0] <= settings.onnx_opset <= OPSETS[1]:
        raise ExportError(
            f"opset {settings.opset}: torch's exporter writes {OPSETS[0]} to {OPSETS[1]}"
        )
    named, other = settings.tower, settings.other_tower
    plugin = DepthPlugin(host, head, tower=named, processor=processor, other_tower=other)
    tower = plugin.tower
    if tower.rule.takes != ("images", 3, "H", "W"):
        axes = ", ".join(map(str, tower.rule.takes))
        raise ExportError(
            f"{tower} takes ({axes}), whose layout differs from picture to picture; the command "
            "exports towers of whole pictures. In Python: DepthTower(host, head, example=...) with "
            "the grids of your pictures as constants, then torch.export (docs/export.md)"
        )
    framing = as_written(PictureDepth(plugin, input_size=settings.size).framing)

    def made() -> DepthTower:
        example = torch.zeros(1, 3, *framing.size)
        try:
            return DepthTower(
                host, head, settings.tower, example=example, other_tower=True, native=True
            )
        except ClipDepthError:
            raise
        except Exception as error:  # the tower's own, of a size that it does not take
            height, width = framing.size
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(
                f"{tower} can't be run on pictures of {height} x {width}: {shortened(first, 300)}"
            ) from error

    reference = made()
    if settings.dynamic_batch and not reference.dynamic_batch:
        raise ExportError(
            f"dynamic_batch: the tokens of {tower} are laid out for a fixed number of pictures; "
            "leave the option out"
        )
    dtype = DTYPES[settings.dtype]
    own = reference if dtype == torch.float32 else made().to(dtype)
    alone = settings.tower_alone
    return Plan(settings, tower, framing, _graphs(reference, alone), _graphs(own, alone))


def _graphs(depth_tower: DepthTower, alone: bool) -> tuple[Graph, ...]:
    graphs = TowerGraph(depth_tower), HeadGraph(depth_tower)
    return (*graphs, TowerAlone(depth_tower)) if alone else graphs

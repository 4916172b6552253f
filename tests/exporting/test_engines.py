"""What TensorRT reads, constants of graphs, and how a card names a host's rule of pictures."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing
from clipdepth_plugin.adapters.processors.whole import ShortestSide, Squash
from clipdepth_plugin.errors import ExportError
from clipdepth_plugin.exporting.constants import with_constants
from clipdepth_plugin.exporting.framed import as_written
from clipdepth_plugin.exporting.tensorrt import build_line, doubts, operators
from clipdepth_plugin.exporting.verifying import BOUNDS, DTYPES


def model_of(*nodes: Any, opset: int = 20) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph(nodes, "graph", [x], [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def branches(op: str) -> Any:
    inner = helper.make_graph([helper.make_node(op, ["x"], ["z"])], "inner", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of(helper.make_node("Relu", ["x"], ["y"])), ()),
        (model_of(helper.make_node("Col2Im", ["x"], ["y"])), ("operator Col2Im is not",)),
        (model_of(branches("Unique")), ("operator Unique is not",)),
        (
            model_of(helper.make_node("FusedMatMul", ["x"], ["y"], domain="com.microsoft")),
            ("operator com.microsoft::FusedMatMul is not",),
        ),
        (model_of(helper.make_node("Resize", ["x"], ["y"], mode="linear")), ()),
        (
            model_of(helper.make_node("Resize", ["x"], ["y"], mode="cubic")),
            ("Resize has mode cub",),
        ),
        (
            model_of(helper.make_node("Resize", ["x"], ["y"], mode="linear", antialias=1)),
            ("Resize has antialias 1",),
        ),
        (
            model_of(helper.make_node("LayerNormalization", ["x"], ["y", "mean"])),
            ("LayerNormalization has more than one output",),
        ),
        (model_of(opset=23), ("opset 23",)),
    ],
)
def test_what_tensorrt_may_refuse(model: onnx.ModelProto, expected: tuple[str, ...]) -> None:
    found = doubts(model)
    assert len(found) == len(expected)
    assert all(part in one for one, part in zip(found, expected, strict=True))


def test_operators_of_inner_graphs_count() -> None:
    assert operators(model_of(branches("Relu"))) == {"If": 1, "Relu": 2}


def test_the_line_of_trtexec() -> None:
    start = "trtexec --onnx=head.onnx --saveEngine=head.engine --stronglyTyped"
    assert build_line("head.onnx", {"x": (1, 3)}, most=8) == start
    line = build_line("head.onnx", {"x": ("batch", 3, 4), "y": ("batch",)}, most=8, usual=2)
    assert (
        line == f"{start} --minShapes=x:1x3x4,y:1 --optShapes=x:2x3x4,y:2 --maxShapes=x:8x3x4,y:8"
    )


class Embedded(nn.Module):
    """A table that is resized in each pass, in place, and noise that may not become a constant."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(16.0).reshape(1, 1, 4, 4), requires_grad=False)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        table = nn.functional.interpolate(self.table, size=(8, 8), mode="bicubic")
        if self.in_place:
            table.mul_(2)
        return x + table + 0 * torch.rand(8, 8)


@pytest.mark.parametrize("in_place", [False, True])
def test_what_weights_alone_say_becomes_a_constant(in_place: bool) -> None:
    module, x = Embedded(in_place=in_place), torch.randn(2, 1, 8, 8)
    program = torch.export.export(module, (x,))
    folded = with_constants(program)
    targets = {str(node.target) for node in folded.graph.nodes}
    assert not any("bicubic" in one or "mul_" in one for one in targets)
    assert any("rand" in one for one in targets)
    torch.testing.assert_close(folded(x), module(x))


def test_a_rule_of_a_processor_gets_the_name_of_a_resize() -> None:
    shown = Preprocessing(*HALF_NORMALISATION, (32, 32), view_rules=(Squash((32, 32)),))
    assert as_written(shown).resize == "squash"
    odd = Preprocessing(*HALF_NORMALISATION, (32, 32), view_rules=(ShortestSide((32, 32), 48),))
    with pytest.raises(ExportError, match="has no name for"):
        as_written(odd)


def test_bounds_are_for_every_dtype() -> None:
    assert BOUNDS.keys() == DTYPES.keys()
    assert (BOUNDS["float32"], BOUNDS["float16"]) == (1e-4, 1e-2)
